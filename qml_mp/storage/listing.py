"""Every process: jobs listed for people, by pages.

Newest first, by `created_at` and id, in either direction from a place in the listing. Each state's jobs stand
in this order in an index, or are few; those that are Enqueued do so within their queue, method and priority.
What a filter asks for beside the state is in no index, which every job would pay for: it is looked for among
so many of the newest (`among`), and the page says how far that went.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from qml_mp.core.job import Job, check_job_id
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.storage.database import Part
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.listing_queries import Order, Parts
from qml_mp.storage.rows import text_of
from qml_mp.storage.values import JobFilter, JobPage

_BEGINNING = datetime(1, 1, 2, tzinfo=UTC)
_END_OF_TIME = datetime(9999, 12, 30, tzinfo=UTC)
_LAST_ID = "g"  # behind all ids
_CLOCKS_DIFFER = timedelta(hours=1)
_MOST_GROUPS = 1000
_FEW_ENQUEUED = 100_000  # are sorted sooner than they are read in groups
_BRIEF_CHARS = 2000
_PREFIX = re.compile(r"[0-9a-f]{1,32}")

_Place = tuple[datetime, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Range:
    """Which part of the listing a page is of, without its ends."""

    older: _Place
    newer: _Place

    def values(self) -> dict[str, object]:
        return {
            "older_at": self.older[0], "older_id": self.older[1],
            "newer_at": self.newer[0], "newer_id": self.newer[1],
        }  # fmt: skip


class Listing(Part):
    """Jobs by pages."""

    def list_jobs(
        self,
        where: JobFilter,
        *,
        limit: int = 50,
        after: str | None = None,
        before: str | None = None,
        among: int | None = None,
        brief: bool = False,
    ) -> JobPage:
        """Newest first. `after` is the `next_cursor` of another page, `before` its `previous_cursor`.

        With `among`, at most so many jobs of each state are looked at for what the filter asks beside it:
        what a page costs does then not grow with the table. It may hold fewer jobs than `limit`, or none, and
        have a `next_cursor` all the same, with which the look goes on. `brief` leaves out tracebacks, and
        payloads, results and metadata that are long.
        """
        if after is not None and before is not None:
            raise ConfigurationError("A page is after a place or before it; pass one of the two.")
        if not where.each_state():
            return JobPage(jobs=(), next_cursor=None)
        order = Order.OLDER if before is None else Order.NEWER
        parts = self._parts(where, among)
        which = {**where.values(), **parts.values()}
        reach = _range_of(where, after=after, before=before)
        edge = None if among is None else self._edge(where, order, parts, reach, max(among, limit + 1))
        if edge is not None:
            reach = _up_to(edge, reach, order)
        query = self._db.queries.listing.page(where, order, parts, brief)
        bound = {
            **which,
            **reach.values(),
            "limit": limit + 1,
        }  # one more: is there another page?
        if brief:
            bound["brief_chars"] = _BRIEF_CHARS
        rows = self._db.read("listing jobs", query, bound)
        found = [job_of(row, self._db.instant) for row in rows]
        cut = {job.id for job, row in zip(found, rows, strict=True) if brief and row["is_cut"]}
        return _page(found, order, limit=limit, edge=edge, start=after or before, cut=cut)

    def jobs_with_id(self, start: str, *, limit: int = 50) -> tuple[Job, ...]:
        """Those whose id begins so, newest id first; of an id written without dashes too. None for what no id
        begins with. They are brief."""
        digits = start.strip().lower().replace("-", "")
        if not _PREFIX.fullmatch(digits):
            return ()
        groups = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        prefix = "-".join(group for group in groups if group)
        which = {"start": prefix, "end": prefix + "g", "limit": limit, "brief_chars": _BRIEF_CHARS}
        query = self._db.queries.listing.with_id
        return tuple(self._read("finding a job by its id", query, job_of, which))

    def _parts(self, where: JobFilter, among: int | None) -> Parts:
        queries = self._db.queries.listing
        rare = (
            where.kind is None
            or among is None
            or self._count(queries.of_kind, {"kind": where.kind, "most": among + 1}) <= among
        )
        few = _FEW_ENQUEUED if among is None or where.asks_for_names_alone() else among
        if (
            StateName.ENQUEUED not in where.each_state()
            or self._count(queries.enqueued, {"most": few + 1}) <= few
        ):
            return Parts(groups=None, kind_is_rare=rare)
        return Parts(groups=self._groups(where), kind_is_rare=rare)

    def _count(self, query: str, which: dict[str, object]) -> int:
        jobs: int = self._db.read("counting jobs", query, which)[0]["jobs"]
        return jobs

    def _groups(self, where: JobFilter) -> tuple[tuple[str, str, int], ...] | None:
        """Those of the Enqueued jobs, each of which stands in order in the index, so that however many wait
        only the newest of each are read; None: too many."""
        query = self._db.queries.listing.groups
        rows = self._db.read("finding what waits", query, {"most": _MOST_GROUPS + 1})
        groups = [(row["queue"], row["method"], row["priority"]) for row in rows]
        if len(groups) > _MOST_GROUPS or not all(_is_text(name) for group in groups for name in group[:2]):
            return None
        return tuple(
            (queue, method, priority)
            for queue, method, priority in groups
            if where.queue in (None, queue) and (where.method is None or where.method.startswith(method))
        )

    def _edge(
        self,
        where: JobFilter,
        order: Order,
        parts: Parts,
        reach: _Range,
        among: int,
    ) -> _Place | None:
        """Where the look ends: at the first place where a state has had its `among`; None: at the end."""
        if not where.values() or (where.kind is not None and parts.kind_is_rare):
            return None
        each = max(1, among // max(1, len(parts.groups or ())))
        bound = {**parts.values(), **reach.values(), "skip": among - 1, "skip_of_group": each}
        query = self._db.queries.listing.edges(where, order, parts)
        rows = self._db.read("listing jobs", query, bound)
        places = [(self._db.instant(row["created_at"]) or _BEGINNING, text_of(row["id"])) for row in rows]
        if not places:
            return None
        return max(places) if order is Order.OLDER else min(places)


def _is_text(name: object) -> bool:
    """Whether it comes back from the database as it is sent; what another program has written may not."""
    return isinstance(name, str) and "\0" not in name and name == name.encode("utf-8", "replace").decode()


def _up_to(edge: _Place, reach: _Range, order: Order) -> _Range:
    """With the edge itself."""
    at, job_id = edge
    if order is Order.OLDER:
        return _Range(newer=reach.newer, older=(at, job_id[:-1]))  # the greatest that is before the id
    return _Range(older=reach.older, newer=(at, job_id + " "))


def _page(
    found: Sequence[Job], order: Order, *, limit: int, edge: _Place | None, start: str | None, cut: set[str]
) -> JobPage:
    jobs = tuple(found[:limit])
    is_full = len(found) > limit
    beyond = _cursor_of(jobs[-1]) if is_full else None if edge is None else _cursor(edge)
    looked_to = None if is_full or edge is None else edge[0]
    if order is Order.NEWER:
        jobs = jobs[::-1]
        return JobPage(
            jobs=jobs,
            next_cursor=_cursor_of(jobs[-1]) if jobs else None,
            previous_cursor=beyond,
            looked_to=looked_to,
            cut=frozenset(cut),
        )
    return JobPage(
        jobs=jobs,
        next_cursor=beyond,
        previous_cursor=_cursor_of(jobs[0]) if jobs and start is not None else None,
        looked_to=looked_to,
        cut=frozenset(cut),
    )


def _range_of(where: JobFilter, *, after: str | None, before: str | None) -> _Range:
    """Who has ended, or waits, since before `until` was made before it, but for clocks that differ."""
    newer = _END_OF_TIME, _LAST_ID
    if where.until is not None and where.until < _END_OF_TIME - _CLOCKS_DIFFER:
        newer = where.until + _CLOCKS_DIFFER, _LAST_ID
    if after is not None:
        newer = min(newer, _read_cursor(after))
    return _Range(newer=newer, older=(_BEGINNING, "") if before is None else _read_cursor(before))


def _cursor_of(job: Job) -> str:
    """Where a page of a listing ended."""
    return _cursor((job.created_at, job.id))


def _cursor(place: _Place) -> str:
    return f"{place[0].isoformat()}/{place[1]}"


def _read_cursor(cursor: str) -> _Place:
    """Raises `ConfigurationError` for text that no page gave."""
    created_at, _, job_id = cursor.partition("/")
    try:
        return datetime.fromisoformat(created_at).astimezone(UTC), check_job_id(job_id)
    except (ValueError, InvalidJob, OverflowError):
        raise ConfigurationError(
            f"{cursor[:80]!r} is not a place in a listing; pass the next_cursor of a page, or nothing."
        ) from None
