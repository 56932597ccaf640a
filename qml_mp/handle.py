"""Client: a job that was enqueued as its producer sees it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NoReturn, SupportsIndex, TypeVar, cast
from uuid import UUID

from qml_mp.core.job import Job, check_job_id
from qml_mp.core.progress import Progress
from qml_mp.core.state import Deleted, StateName, Succeeded
from qml_mp.ends import JobEnds
from qml_mp.errors import (
    InvalidJob,
    JobFailed,
    JobNotFound,
    ResultMismatch,
    ResultNotStored,
    StorageError,
    WaitTimeout,
)
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, CancelResult, Retention
from qml_mp.units import Duration, format_duration, parse_duration

if TYPE_CHECKING:
    # At run time typing's own, which knows defaults from Python 3.13 on.
    from typing_extensions import TypeVar as _TypeVar

    R = _TypeVar("R", covariant=True, default=Any)
else:
    R = TypeVar("R", covariant=True)


class JobHandle(Generic[R]):
    """Reads the job's row anew each time it is asked. Raises `JobNotFound` once the row is gone,
    and `StorageUnavailable` when the storage cannot be asked now. The thread waits for the answer: in a
    coroutine, `await asyncio.to_thread(handle.job)`.

    The result is rebuilt by the function's return annotation where the handle comes from the function
    (`f.enqueue(...)`, `f.handle(id)`); what cannot be rebuilt, and any result by a handle that was made by
    name, is the JSON as stored. To type checkers `JobHandle[int]` is one whose result is an int.
    """

    __slots__ = ("_method", "_rebuilt", "_retention", "ends", "id", "is_new")

    def __init__(
        self,
        job_id: str,
        *,
        storage: Storage,
        retention: Retention | None = None,
        is_new: bool | None = None,
        method: str | None = None,
        rebuilt: Callable[[Job], R] | None = None,
        ends: JobEnds | None = None,
    ) -> None:
        """`retention` says how long a job that is cancelled here is kept; None: as by default. `is_new`:
        whether this very job was written when it was enqueued; False: an earlier one that has its unique key
        was kept, and the handle is that one's; None: it was not enqueued here. `method`: what the job should
        be of, as the result of another method's is not given; None: any. `rebuilt`: what the stored result of
        the job stands for, `InvalidJob` where it does not fit; None: the JSON.
        `ends`: where handles of that storage wait."""
        self.id = job_id
        self.is_new = is_new
        self.ends = ends or JobEnds(storage)
        self._retention = retention or BY_DEFAULT
        self._method = method
        self._rebuilt = rebuilt

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __copy__(self) -> JobHandle[R]:
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """A pickle would have the storage's URL in it, maybe with a password."""
        raise TypeError(
            "A JobHandle cannot be pickled, as it is connected to the storage: pass `handle.id`, and make a "
            "handle of it there: `f.handle(id)` of the job function, or `app.handle(id)`."
        )

    def job(self) -> Job:
        """The row as it is now."""
        job = self._storage.get(self.id)
        if job is None:
            raise self._not_found()
        return job

    @property
    def state(self) -> StateName:
        """The name of the state it is in now."""
        return self.job().state_name

    @property
    def result(self) -> R | None:
        """What the function returned; None while the job has not succeeded.

        Raises `ResultNotStored` when it has, and what it returned could not be stored, and `ResultMismatch`
        when what is stored does not fit the function's annotation, or the job is another function's."""
        job = self.job()
        return self._result_of(job) if isinstance(job.state, Succeeded) else None

    @property
    def progress(self) -> Progress | None:
        """How far it has come in its newest attempt, as it said with `ctx.progress`, at most about a second
        ago while it runs; None when it has said nothing."""
        return self._storage.progress_of([self.id]).get(self.id)

    def wait(self, timeout: Duration | None = None) -> R:
        """Wait until the job has ended and return its result; None for a function whose result is not kept.

        Raises `JobFailed` when it ends failed or deleted, `ResultNotStored` when it succeeded with a
        result that could not be stored, `ResultMismatch` when that does not fit the function's annotation or
        the job is another function's, `JobNotFound` when it is not there (any more), and `WaitTimeout` when
        it has not ended after `timeout` (None: wait without a limit); the job goes on then. An outage of the
        storage meanwhile is waited out. It is looked for once in any case, and once more when the time is
        over: where the storage takes long to answer, as a file that others have locked, this is late by that.

        Not in a job, if it can be helped: it keeps its worker busy, and when all workers wait for jobs that
        need one, none goes on until their time limits pass. Let the other job do what comes after it
        (`ctx.then`), or give those jobs a queue with a server of its own.
        """
        limit = parsed_timeout(timeout)
        deadline = deadline_of(limit)
        with self.ends.wait([self.id]) as waiting:
            ended = waiting.next_ended(deadline=deadline)
        return self.outcome(ended[self.id] if ended else self._ended_at_last(limit))

    async def await_result(self, timeout: Duration | None = None) -> R:
        """`wait` without blocking the event loop; may be cancelled. The same holds for it inside of jobs."""
        limit = parsed_timeout(timeout)
        async with self.ends.awaiting.subscribe([self.id]) as subscription:
            ended = await subscription.next_ended(deadline=deadline_of(limit))
        if not ended:
            return self.outcome(await self.ends.threads.call(partial(self._ended_at_last, limit)))
        return self.outcome(ended[self.id])

    def cancel(self, *, reason: str = "cancelled by its producer") -> CancelResult:
        """Make the job Deleted, at once or, when it runs, as soon as its worker has ended it.
        `ConfigurationError` for a reason that is no text."""
        result = self._storage.request_cancel(self.id, reason=reason, retention=self._retention)
        if result is CancelResult.NOT_FOUND:
            raise self._not_found()
        return result

    def retry(self) -> None:
        """Enqueue a Failed job again with fresh budgets. `InvalidTransition` in any other state."""
        self._storage.retry(self.id)

    def outcome(self, job: Job | None) -> R:
        """The result of the row when it has ended; the errors are those of `wait`. None: there is none."""
        if job is None:
            raise self._not_found()
        if isinstance(job.state, Succeeded):
            return self._result_of(job)
        raise JobFailed(_told(job), job_id=job.id, state=str(job.state_name))

    @property
    def _storage(self) -> Storage:
        return self.ends.storage

    def _result_of(self, job: Job) -> R:
        reason = job.result_not_stored
        if reason is not None:
            raise ResultNotStored(
                f"The job {job.id} ({job.method}) succeeded, but its result was not stored: {reason}",
                job_id=job.id,
                reason=reason,
            )
        if self._method is not None and job.method != self._method:
            raise ResultMismatch(
                f"The job {job.id} is one of {job.method!r}, and this handle of it comes from "
                f"{self._method!r}, to which its result does not belong. If it was kept for a unique "
                "key: all methods share the keys, so put the method's name into each. `value` of this error "
                "has the result as stored, and so has `app.handle(id).result`.",
                job_id=job.id,
                value=job.result,
            )
        if self._rebuilt is None:
            return cast(R, job.result)  # of such a handle it is JsonValue
        try:
            return self._rebuilt(job)
        except InvalidJob as problem:
            raise ResultMismatch(
                f"The job {job.id} ({job.method}) succeeded, but its result does not fit the function's "
                f"annotation (any more): {problem} `value` of this error has it as stored, and so has "
                "`app.handle(id).result`.",
                job_id=job.id,
                value=job.result,
            ) from problem

    def _ended_at_last(self, limit: timedelta | None) -> Job:
        """The time is over: the row, if the job has ended since the last look, which may be a while ago; else
        raises `WaitTimeout`."""
        waited = format_duration(limit or timedelta())
        try:
            job = self.job()
        except StorageError as problem:
            told = f"The job {self.id} was not seen to end within {waited}: {problem}"
            raise WaitTimeout(told) from problem
        if job.state_name.is_final:
            return job
        told = f"The job {self.id} ({job.method}) is still {job.state_name} after {waited}; it goes on."
        is_in_queue = job.state_name is StateName.ENQUEUED
        raise WaitTimeout(f"{told} Does a server serve the queue {job.queue!r}?" if is_in_queue else told)

    def _not_found(self) -> JobNotFound:
        try:
            check_job_id(self.id)
        except InvalidJob as error:
            return JobNotFound(str(error))
        return JobNotFound(f"No job has the id {self.id}; ended jobs are removed after their time to live.")


def job_id_of(given: str | UUID) -> str:
    """The id in its canonical form. Text that is none stays as it is, and no job has it: it may come from a
    request. Raises `InvalidJob` for anything else."""
    try:
        return check_job_id(str(given) if isinstance(given, UUID) else given)
    except InvalidJob:
        if isinstance(given, str):
            return given
        raise


def parsed_timeout(timeout: Duration | None) -> timedelta | None:
    """How long to wait; None: without a limit."""
    return None if timeout is None else parse_duration(timeout, what="timeout")


def deadline_of(limit: timedelta | None) -> float:
    """The monotonic instant."""
    return float("inf") if limit is None else time.monotonic() + limit.total_seconds()


def _told(job: Job) -> str:
    if isinstance(job.state, Deleted):
        return f"The job {job.id} ({job.method}) was deleted: {job.state.reason or 'no reason given'}"
    error = job.error
    why = "no error is known" if error is None else f"{error.type}: {error.message}"
    return f"The job {job.id} ({job.method}) failed: {why}"
