"""Client: jobs chosen by what they are, counted and changed together, in batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TypedDict, Unpack

from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, QmlError, StorageError, shown
from qml_mp.storage.store import Storage
from qml_mp.storage.values import CancelResult, JobFilter, Retention
from qml_mp.units import Duration, check_no_date, parse_duration

_BATCH = 500  # some 20 ms, in which others wait on SQLite
_WAITING = (StateName.ENQUEUED, StateName.SCHEDULED, StateName.AWAITING_RETRY)


class BulkChange(StrEnum):
    """What can be done to many jobs."""

    RETRY = "retry"
    CANCEL = "cancel"
    DELETE = "delete"

    @property
    def done(self) -> str:
        """What jobs are after it, for people."""
        match self:
            case BulkChange.RETRY:
                return "enqueued again"
            case BulkChange.CANCEL:
                return "deleted or asked to end"
            case BulkChange.DELETE:
                return "deleted"

    @property
    def states(self) -> tuple[StateName, ...]:
        """Of the jobs that are meant when no state is named."""
        match self:
            case BulkChange.RETRY:
                return (StateName.FAILED,)
            case BulkChange.CANCEL:
                return (*_WAITING, StateName.PROCESSING)
            case BulkChange.DELETE:
                return (*_WAITING, StateName.SUCCEEDED, StateName.FAILED)


class ChosenJobs(TypedDict, total=False):
    """By what jobs are chosen; what is not said does not restrict."""

    state: str | Sequence[str]
    """One, or several."""
    queue: str
    method: str
    error: str
    """A part of "type: message" of the newest error, without regard to case."""
    since: Duration | datetime
    """Ended since, or waiting since; a duration counts back from now, by the storage's clock. Text such as
    "2030", which may be a date, is refused."""
    until: Duration | datetime
    """Ended until then, or waiting since no later; likewise."""
    kind: str
    """Failures of one kind, as `qml-mp jobs errors --json` names it; only jobs that failed, or wait for a
    retry, are meant then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What became of some of the jobs."""

    changed: int
    refused: int = 0
    """Running ones that are left as they were, each with its reason."""


class JobSelection:
    """The jobs that a filter means, and that were there when this was made: what comes later, or ends later,
    is not meant. So of jobs that are retried none is retried twice, however soon it fails again. A job
    that runs, and waited then, is meant if all that wait are asked for, or if it was seen to wait.
    `app.jobs(...)` makes one.

    Each change commits by the batch and is guarded by the states that are asked for: it is safe beside
    workers and other people, and one that is broken off leaves whole batches.
    """

    def __init__(
        self, storage: Storage, where: JobFilter, *, retention: Retention, until: datetime | None = None
    ) -> None:
        """`until`: the instant of the storage's clock that counts; None: now."""
        self._storage = storage
        self._until = until or storage.now()
        self._retention = retention
        self.where = where

    def count(self) -> int:
        """How many there are now."""
        return sum(self.counts().values())

    def counts(self) -> dict[StateName, int]:
        """By state; without those of which there are none."""
        return self._storage.count_jobs(self.where, until=self._until, ran_then=self._ran_then)

    def retry(self) -> int:
        """Enqueue the Failed ones again, with fresh budgets; how many. One whose unique key another job has
        that has not ended is left as it is."""
        return self._changed(BulkChange.RETRY, "")

    def cancel(self, *, reason: str = "cancelled with others") -> int:
        """Delete those that wait, and ask the servers to end those that run; how many."""
        return self._changed(BulkChange.CANCEL, reason)

    def delete(self, *, reason: str = "deleted with others") -> int:
        """Make Deleted those that do not run; how many. Their rows go when their time to live is over."""
        return self._changed(BulkChange.DELETE, reason)

    def for_change(self, change: BulkChange, *, running: bool = False) -> JobSelection:
        """The same of the states that the change is for. Raises `ConfigurationError` for a state that was
        asked for and cannot be changed so; running jobs can with `running`."""
        possible = {*change.states, *([StateName.PROCESSING] if running else [])}
        impossible = set(self.where.states) - possible
        if impossible:
            raise ConfigurationError(
                f"{change} changes no {min(impossible)} jobs; it is for {', '.join(sorted(possible))}."
            )
        where = replace(self.where, states=self.where.states or change.states)
        return JobSelection(self._storage, where, retention=self._retention, until=self._until)

    def in_batches(
        self, change: BulkChange, *, reason: str, running: Callable[[str], object] | None = None
    ) -> Iterator[Batch]:
        """Change them, a commit each batch. `running` sees to a job that runs, and raises `QmlError` when it
        leaves it as it is; without it these are asked to end."""
        at_rest = [state for state in self.where.each_state() if state is not StateName.PROCESSING]
        see_to = running or (lambda job_id: self._ask_to_end(job_id, reason))
        seen_to, missed = set[str](), set[str]()
        is_news = True
        while is_news:  # a job that runs at the one look may wait for its retry at the other, and run again
            is_news = False
            for ids in self._ids(at_rest):
                changed = self._change(change, ids, at_rest, reason)
                is_news = is_news or bool(changed)
                missed.update(set(ids).difference(changed))
                yield Batch(changed=len(changed))
            if StateName.PROCESSING not in self.where.each_state():
                return
            for ids in self._running_ids(missed):
                others = [job_id for job_id in ids if job_id not in seen_to]
                if others:
                    is_news = True
                    seen_to.update(others)
                    yield from in_turn(see_to, others)

    def _changed(self, change: BulkChange, reason: str) -> int:
        _text(reason, what="reason")  # where there are none, or only such as run, nothing else would tell
        return sum(batch.changed for batch in self.for_change(change).in_batches(change, reason=reason))

    @property
    def _ran_then(self) -> bool:
        """Whether of the jobs that run those alone are meant that ran then. When all that wait are asked for
        it does not matter which have begun since."""
        return not set(_WAITING).issubset(self.where.each_state())

    def _running_ids(self, missed: Collection[str]) -> Iterator[list[str]]:
        """Of those that run; and of those that have begun since they were seen at rest, before their turn."""
        yield from self._ids([StateName.PROCESSING], ran_then=self._ran_then)
        if missed and self._ran_then:
            for ids in self._ids([StateName.PROCESSING], ran_then=False):
                yield [job_id for job_id in ids if job_id in missed]

    def _ids(self, states: Sequence[StateName], *, ran_then: bool = False) -> Iterator[list[str]]:
        where, rest = replace(self.where, states=states), None
        while states and rest != ():
            found = self._storage.job_ids(where, until=self._until, ran_then=ran_then, rest=rest)
            for start in range(0, len(found.ids), _BATCH):
                yield list(found.ids[start : start + _BATCH])
            rest = found.rest

    def _change(
        self, change: BulkChange, ids: list[str], states: Sequence[StateName], reason: str
    ) -> list[str]:
        if change is BulkChange.RETRY:
            return self._storage.retry_many(ids, until=self._until)
        return self._storage.delete_many(
            ids, states=states, until=self._until, reason=reason, retention=self._retention
        )

    def _ask_to_end(self, job_id: str, reason: str) -> None:
        result = self._storage.request_cancel(job_id, reason=reason, retention=self._retention)
        if result in (CancelResult.NOT_FOUND, CancelResult.ALREADY_FINAL):
            raise QmlError(f"The job {job_id} has ended meanwhile.")


def chosen_jobs(storage: Storage, *, retention: Retention, **chosen: Unpack[ChosenJobs]) -> JobSelection:
    """Raises `TypeError` for a name that chooses nothing: without it all jobs would be meant.
    `ConfigurationError` for what is no state, text, duration or instant, and for an empty `error`."""
    for name in chosen:
        if name not in ChosenJobs.__annotations__:
            raise TypeError(
                f"There is no filter {name!r}; there are {', '.join(ChosenJobs.__annotations__)}."
            )
    where = JobFilter(
        states=_states(chosen.get("state")),
        queue=_text(chosen.get("queue"), what="queue"),
        method=_text(chosen.get("method"), what="method"),
        error=_text(chosen.get("error"), what="error"),
        since=_instant(storage, chosen.get("since"), what="since"),
        until=_instant(storage, chosen.get("until"), what="until"),
        kind=_text(chosen.get("kind"), what="kind"),
    )
    return JobSelection(storage, where, retention=retention)


def _states(said: str | Sequence[str] | None) -> list[StateName]:
    if said is None:
        return []
    names = [said] if isinstance(said, str) else list(said)
    if not names:  # of jobs in no state there are none, and a filter without a state means all
        raise ConfigurationError("state is empty; name one state or several, or leave it out.")
    for name in names:
        if name not in set(StateName):
            raise ConfigurationError(f"state is {shown(name)}; it must be one of {', '.join(StateName)}.")
    return [StateName(name) for name in names]


def _text(said: str | None, *, what: str) -> str | None:
    if said is not None and not isinstance(said, str):
        raise ConfigurationError(f"{what} is {shown(said)}; it must be text.")
    return said


def _instant(storage: Storage, said: Duration | datetime | None, *, what: str) -> datetime | None:
    if isinstance(said, datetime):
        if said.tzinfo is None:
            raise ConfigurationError(f"{what} is {said}, which names no time zone; use an aware datetime.")
        return said
    if isinstance(said, str):
        check_no_date(said, what=what, as_date="give an aware datetime")
    if said is None:
        return None
    try:
        return storage.now() - parse_duration(said, what=what)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} An instant is given as an aware datetime.") from None


def in_turn(see_to: Callable[[str], object], ids: Sequence[str]) -> Iterator[Batch]:
    """Jobs that run, each with a commit of its own: what an error breaks off is told as far as it came."""
    changed = refused = 0
    try:
        for job_id in ids:
            is_done = _is_done(see_to, job_id)
            changed, refused = changed + is_done, refused + (not is_done)
    except BaseException:
        yield Batch(changed=changed, refused=refused)
        raise
    yield Batch(changed=changed, refused=refused)


def _is_done(see_to: Callable[[str], object], job_id: str) -> bool:
    try:
        see_to(job_id)
    except StorageError:
        raise
    except QmlError:
        return False
    return True
