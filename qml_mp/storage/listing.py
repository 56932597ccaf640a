"""Every process: jobs listed for people, by pages, and found for a change of many.

Newest first, by `created_at` and id, in either direction from a place in the listing. Each state's jobs stand
in this order in an index, or are few; those that are Enqueued do so within their queue, method and priority.
What a filter asks for beside the state is in no index, which every job would pay for: it is looked for among
so many of the newest (`among`), and the page says how far that went. Who changes many jobs goes through all,
a bounded number at a time in the same order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from qml_mp.core.job import Job, check_job_id
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.storage.database import Operations
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.listing_queries import AccessPath, Order
from qml_mp.storage.rows import state_name_of, text_of
from qml_mp.storage.values import JobFilter, JobPage

_BEGINNING = datetime(1, 1, 2, tzinfo=UTC)
_END_OF_TIME = datetime(9999, 12, 30, tzinfo=UTC)
_LAST_ID = "g"  # behind all ids
_CLOCKS_DIFFER = timedelta(hours=1)
_MOST_GROUPS = 1000
_FEW_ENQUEUED = 100_000  # are sorted sooner than they are read in groups
_BRIEF_CHARS = 2000
_MOST_AT_ONCE = 20_000  # of each state, for a change of many: far less than a statement has time for
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


_WHOLE = _Range(older=(_BEGINNING, ""), newer=(_END_OF_TIME, _LAST_ID))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """Some of the jobs that a filter means, which stand in the order of listings together."""

    where: JobFilter
    path: AccessPath
    """No group, or a single one."""
    left: _Range = _WHOLE
    """What has not been looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundIds:
    """Some of the jobs that are meant."""

    ids: tuple[str, ...]
    """In order."""
    rest: tuple[_Section, ...]
    """Pass it as `rest` for the next ones; empty: these were the last."""


class Listing(Operations):
    """Jobs by pages, and those that a change means."""

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
        few = _FEW_ENQUEUED if among is None or where.asks_for_names_alone() else among
        path = self._access_path(where, few=few, rare=among)
        which = {**where.values(), **path.values()}
        reach = _range_of(where, after=after, before=before)
        edge = None
        if among is not None and where.values():
            edge = self._edge(where, order, path, reach, max(among, limit + 1))
        if edge is not None:
            reach = _up_to(edge, reach, order)
        query = self._db.queries.listing.page(where, order, path, brief)
        bound = {**which, **reach.values(), "limit": limit + 1}  # one more: is there another page?
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

    def count_jobs(
        self, where: JobFilter, *, until: datetime, ran_then: bool = False
    ) -> dict[StateName, int]:
        """How many are meant, by state, without those of which there are none: not those that are younger
        than `until`, an instant of the database's clock, or have ended later. With `ran_then`, of those that
        run only the ones that have since before `until`.

        It takes several statements where there are many; what others change meanwhile may be counted or not.
        """
        counts: Counter[StateName] = Counter()
        rest = self._sections(where)
        while rest:
            section, reach, rest = self._next(rest)
            query = self._db.queries.listing.count_meant(section.where, section.path, ran_then)
            for row in self._db.read("counting jobs", query, _bound(section, reach, until)):
                counts[state_name_of(row["state"])] += row["jobs"]
        return {state: counts[state] for state in StateName if counts[state]}

    def job_ids(
        self,
        where: JobFilter,
        *,
        until: datetime,
        ran_then: bool = False,
        rest: Sequence[_Section] | None = None,
    ) -> FoundIds:
        """The first of those that are meant, or the next: those of `rest`. As `count_jobs` means them.

        A job that others make runnable meanwhile is found in its old or its new state, unless it is in a new
        queue or method then.
        """
        rest = self._sections(where) if rest is None else tuple(rest)
        if not rest:
            return FoundIds(ids=(), rest=())
        section, reach, rest = self._next(rest)
        query = self._db.queries.listing.ids_meant(section.where, section.path, ran_then)
        rows = self._db.read("finding jobs", query, _bound(section, reach, until))
        return FoundIds(ids=tuple(sorted(row["id"] for row in rows)), rest=rest)

    def _sections(self, where: JobFilter) -> tuple[_Section, ...]:
        """One, unless many jobs are Enqueued: then each group of these comes last, by itself. What becomes
        runnable meanwhile is not missed so."""
        states = where.each_state()
        if not states:
            return ()
        path = self._access_path(where, few=_MOST_AT_ONCE, rare=_MOST_AT_ONCE)
        if path.groups is None:
            return (_Section(where=where, path=path),)
        others = [state for state in states if state is not StateName.ENQUEUED]
        whole, enqueued = replace(path, groups=None), replace(where, states=[StateName.ENQUEUED])
        return (
            *([_Section(where=replace(where, states=others), path=whole)] if others else []),
            *(_Section(where=enqueued, path=replace(path, groups=(group,))) for group in path.groups),
        )

    def _next(self, rest: Sequence[_Section]) -> tuple[_Section, _Range, tuple[_Section, ...]]:
        """The first section, how far to look in it now, and what is left then."""
        section, *others = rest
        edge = self._edge(section.where, Order.NEWER, section.path, section.left, _MOST_AT_ONCE)
        if edge is None:
            return section, section.left, tuple(others)
        left = replace(section, left=replace(section.left, older=edge))
        return section, _up_to(edge, section.left, Order.NEWER), (left, *others)

    def _access_path(self, where: JobFilter, *, few: int, rare: int | None) -> AccessPath:
        """Up to `few` Enqueued jobs are read in one, up to `rare` of a kind (None: however many) as such."""
        queries = self._db.queries.listing
        is_rare = (
            where.kind is None
            or rare is None
            or self._count(queries.of_kind, {"kind": where.kind, "most": rare + 1}) <= rare
        )
        if (
            StateName.ENQUEUED not in where.each_state()
            or self._count(queries.enqueued, {"most": few + 1}) <= few
        ):
            return AccessPath(groups=None, kind_is_rare=is_rare)
        return AccessPath(groups=self._groups(where), kind_is_rare=is_rare)

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
        path: AccessPath,
        reach: _Range,
        among: int,
    ) -> _Place | None:
        """Where the look ends: at the first place where a state has had its `among`; None: at the end."""
        if where.kind is not None and path.kind_is_rare:
            return None
        each = max(1, among // max(1, len(path.groups or ())))
        bound = {**path.values(), **reach.values(), "skip": among - 1, "skip_of_group": each}
        query = self._db.queries.listing.edges(where, order, path)
        rows = self._db.read("listing jobs", query, bound)
        places = [(self._db.instant(row["created_at"]) or _BEGINNING, text_of(row["id"])) for row in rows]
        if not places:
            return None
        return max(places) if order is Order.OLDER else min(places)


def _bound(section: _Section, reach: _Range, until: datetime) -> dict[str, object]:
    return {**section.where.values(), **section.path.values(), **reach.values(), "until": until}


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
