"""Web process: many jobs changed together: what is meant, how many that are, and the number typed by hand.

The set is fixed by an instant of the storage's clock, which the form carries: what comes later, or ends
later, is not meant. Nothing is changed unless the typed number is how many are meant when it arrives.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qml_mp.core.acts import ActState
from qml_mp.core.job import check_job_id
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, shown
from qml_mp.job_selection import BulkChange, JobSelection, in_turn
from qml_mp.storage.values import JobFilter
from qml_mp.views.changing import Changing
from qml_mp.web.audit import note, reason_of
from qml_mp.web.filters import Filters
from qml_mp.web.site import Site, site_of

_WITHIN_S = 20.0
_MOST_CHOSEN = 200
_FEW = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a person wants changed."""

    change: BulkChange
    ids: tuple[str, ...]
    """Chosen one by one; empty: all that the filters mean."""
    filters: Filters
    until: datetime
    back: str

    @property
    def subject(self) -> str:
        return f"{len(self.ids)} chosen jobs" if self.ids else self.filters.in_words()


@dataclass(slots=True)
class _Done:
    """How many jobs so far, also when it is broken off."""

    changed: int = 0
    refused: int = 0


def ask(request: Request) -> Response:
    """How many are meant, and a field for that number. Reads only."""
    site = site_of(request)
    wanted = _wanted(site, request, request.query_params.getlist)
    return _question(request, site, wanted, _counts(site, wanted))


def change(request: Request) -> Response:
    """Do it, if the number is typed."""
    site, form = site_of(request), site_of(request).form(request)
    wanted = _wanted(site, request, form.texts)
    counts = _counts(site, wanted)
    meant, typed = sum(counts.values()), form.text("typed", default="")
    wrong = _why_not(typed, meant)
    if wrong is not None:
        return _question(request, site, wanted, counts, wrong=wrong, status=409)
    done, act_id = _Done(), str(uuid.uuid4())

    def tell(said: str, state: ActState) -> None:
        """In one entry of the audit, whose later lines say which jobs were ticked."""
        said = "\n".join([said, *wanted.ids])
        note(request, f"{wanted.change} jobs", wanted.subject, said=said, state=state, act_id=act_id)

    # Before the first of them: each batch is committed, and this process may be killed after any.
    tell(f"Begun, and not told to have ended: {meant} jobs are meant.", ActState.UNFINISHED)
    try:
        sentence = _do(site, request, wanted, meant, done)
    except Exception:
        so_far = f"Broken off by an error: {done.changed} of {meant} {wanted.change.done} before it."
        tell(so_far, ActState.UNFINISHED)
        raise
    tell(sentence, ActState.DONE)
    return site.done(request, sentence, to=wanted.back)


def _wanted(site: Site, request: Request, texts: Callable[[str], Sequence[str]]) -> Wanted:
    """Raises `ConfigurationError` for what cannot be meant."""
    name = next(iter(texts("change")), "")
    if name not in set(BulkChange):
        raise ConfigurationError(f"{shown(name)} is no change; one of {', '.join(BulkChange)} is.")
    filters = Filters.of(texts)
    chosen = "".join(texts("which")[:1]) != "all"
    ids = tuple(dict.fromkeys(map(check_job_id, texts("job")))) if chosen else ()
    if chosen and not ids:
        raise ConfigurationError("No job is chosen. Tick some, or choose all that the filter means.")
    if len(ids) > _MOST_CHOSEN:
        raise ConfigurationError(f"{len(ids)} jobs are chosen; {_MOST_CHOSEN} at most can be at a time.")
    given = next(iter(texts("at")), "")
    try:
        until = datetime.fromisoformat(given) if given else site.storage.now()
    except ValueError:
        raise ConfigurationError(f"{shown(given)} is no instant. Load the page again.") from None
    if until.tzinfo is None:
        raise ConfigurationError(f"{shown(given)} names no time zone. Load the page again.")
    return Wanted(
        change=BulkChange(name), ids=ids, filters=filters, until=until,
        back=site.url(request, "jobs", **filters.values),
    )  # fmt: skip


def _question(
    request: Request,
    site: Site,
    wanted: Wanted,
    counts: Mapping[StateName, int],
    *,
    wrong: str | None = None,
    status: int = 200,
) -> Response:
    return site.page(
        request,
        "jobs_change.html",
        status=status,
        screen="jobs",
        wanted=wanted,
        counts=counts,
        meant=sum(counts.values()),
        some=_some(site, wanted),
        wrong=wrong,
    )


def _why_not(typed: str, meant: int) -> str | None:
    """None: it is the number. Spaces and separators between its digits are fine."""
    digits = "".join(each for each in typed if not each.isspace() and each not in ",.'_\u202f")
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 12:
        return f"Type how many jobs are meant ({meant}); {shown(typed)} is no number. Nothing was changed."
    if int(digits) != meant:
        return (
            f"You typed {int(digits)}, and {meant} are meant now. This request has changed nothing; what an "
            "earlier one has changed stands in the audit."
        )
    return None


def _filter(wanted: Wanted) -> JobFilter | None:
    """With the states that can be changed so; None: none of those that are asked for can."""
    where = wanted.filters.job_filter(wanted.until)
    states = [state for state in wanted.change.states if state in where.each_state()]
    return replace(where, states=states) if states else None


def _counts(site: Site, wanted: Wanted) -> Mapping[StateName, int]:
    """How many jobs are meant and can be changed so, by state."""
    if not wanted.ids:
        where = _filter(wanted)
        return {} if where is None else _selection(site, wanted, where).counts()
    found: dict[StateName, int] = {}
    for state in _states_of(site, wanted).values():
        if state in wanted.change.states:
            found[state] = found.get(state, 0) + 1
    return found


def _states_of(site: Site, wanted: Wanted) -> dict[str, StateName]:
    """Of the chosen jobs that are still there."""
    rows = map(site.storage.get, wanted.ids)  # one at a time in memory: each may be of megabytes
    return {job.id: job.state_name for job in rows if job is not None}


def _some(site: Site, wanted: Wanted) -> list[tuple[str, str]]:
    """Ids and methods of a few."""
    if wanted.ids:
        jobs = map(site.storage.get, wanted.ids[:_FEW])
        return [(job.id, job.method) for job in jobs if job is not None]
    where = _filter(wanted)
    if where is None:
        return []
    page = site.storage.list_jobs(where, limit=_FEW, among=5000, brief=True)
    return [(job.id, job.method) for job in page.jobs if job.created_at <= wanted.until]


def _selection(site: Site, wanted: Wanted, where: JobFilter) -> JobSelection:
    return JobSelection(site.storage, where, retention=site.retention, until=wanted.until)


def _do(site: Site, request: Request, wanted: Wanted, meant: int, done: _Done) -> str:
    """Change them; what has become of them, as a sentence."""
    reason = reason_of(request, "cancelled" if wanted.change is BulkChange.CANCEL else "deleted")
    see_to = Changing.many(site.storage, retention=site.retention, reason=reason).cancel
    if wanted.ids:
        _change_chosen(site, wanted, reason, see_to, done)
        return _told(wanted, done, meant)
    where = _filter(wanted)
    if where is None:
        return _told(wanted, done, meant)
    ends_at = time.monotonic() + _WITHIN_S
    selection = _selection(site, wanted, where)
    for batch in selection.in_batches(wanted.change, reason=reason, running=see_to):
        done.changed += batch.changed
        done.refused += batch.refused
        if time.monotonic() > ends_at:
            return _told_out_of_time(wanted, done, meant)
    return _told(wanted, done, meant)


def _change_chosen(
    site: Site, wanted: Wanted, reason: str, see_to: Callable[[str], object], done: _Done
) -> None:
    at_rest = [state for state in wanted.change.states if state is not StateName.PROCESSING]
    if wanted.change is BulkChange.RETRY:
        done.changed = len(site.storage.retry_many(wanted.ids, until=wanted.until))
        return
    deleted = site.storage.delete_many(
        wanted.ids, states=at_rest, until=wanted.until, reason=reason, retention=site.retention
    )
    done.changed = len(deleted)
    if wanted.change is BulkChange.CANCEL:
        states = _states_of(site, wanted)
        running = [job_id for job_id in states if states[job_id] is StateName.PROCESSING]
        for batch in in_turn(see_to, running):
            done.changed += batch.changed
            done.refused += batch.refused


def _told_out_of_time(wanted: Wanted, done: _Done, meant: int) -> str:
    """When there is no time for more of them: those that had no turn are not as before for a reason."""
    tried = done.changed + done.refused
    told = _told(wanted, done, tried)
    if tried >= meant:
        return told
    return f"{told} That took all the time there is: {_jobs(meant - tried)} left, do the same again."


def _told(wanted: Wanted, done: _Done, tried: int) -> str:
    """`tried`: how many had their turn."""
    said = f"{_jobs(done.changed)} {wanted.change.done}."
    left = tried - done.changed - done.refused
    if done.refused:
        said += f" {_jobs(done.refused)} as before: they had just ended, or their server cannot be seen."
    if left > 0:
        said += f" {_jobs(left)} as before: they changed since, or another job has their unique key."
    return said


def _jobs(count: int) -> str:
    return "1 job is" if count == 1 else f"{count} jobs are"


ROUTES = (
    Route("/jobs/change", ask, name="ask_jobs"),
    Route("/jobs/change", change, methods=["POST"], name="change_jobs"),
)
