"""Client: the way from a job to its row, and a job that was enqueued as its producer sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from qml_mp.clock import growing_pauses
from qml_mp.core.job import Job
from qml_mp.core.payload import JsonValue
from qml_mp.core.progress import Progress
from qml_mp.core.state import Deleted, StateName, Succeeded
from qml_mp.errors import JobFailed, JobNotFound, ResultNotStored, WaitTimeout, shown
from qml_mp.storage.connection import fork_guard
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, CancelResult, JobFilter, Retention
from qml_mp.units import Duration, format_duration, parse_duration


class JobClient:
    """Enqueues and finds jobs in one storage."""

    def __init__(self, *, retention: Retention) -> None:
        self.retention = retention
        self._url: str | None = None
        self._storage: Storage | None = None
        self._run: Callable[[Sequence[Job]], list[str]] | None = None
        """What is done with jobs instead (see `inline`)."""

    def connect(self, url: str | None) -> None:
        """From now on use the storage of this URL (None: look the URL up when it is needed)."""
        self.close()
        with fork_guard().no_forks:
            self._url = url
            self._storage = None

    @contextmanager
    def attached(
        self,
        url: str,
        storage: Storage | None = None,
        *,
        run: Callable[[Sequence[Job]], list[str]] | None = None,
    ) -> Iterator[None]:
        """Within the block, use the storage of this URL. What is to be enqueued is given to `run`, if there
        is one, which returns ids."""
        before = self._url, self._storage, self._run
        self._url, self._storage, self._run = url, storage, run
        try:
            yield
        finally:
            self.close()
            self._url, self._storage, self._run = before

    @property
    def storage(self) -> Storage:
        """The storage; it connects when it is first used, and makes its schema when it has none."""
        storage = self._storage  # read once: another thread may be in `connect`
        if storage is not None:
            return storage
        with fork_guard().no_forks:  # a child could never import what a thread is importing that it has not
            if self._storage is None:
                # Imported here: declaring an app must not cost what a storage does.
                from qml_mp.sources import load_url
                from qml_mp.storage.open import open_storage

                self._storage = open_storage(load_url(self._url))
            return self._storage

    @property
    def url(self) -> str | None:
        """The URL as given; for `memory://`, that of the one database that it stands for here."""
        if self._url is not None and self._url.startswith("memory:"):
            return self.storage.url
        return self._url

    def enqueue(self, job: Job, *, conn: object | None = None) -> JobHandle:
        """Commit the job, or write it within the caller's transaction when `conn` is given."""
        if conn is not None or self._run is not None:
            return self.enqueue_many([job], conn=conn)[0]
        return self._handle_of(job, self.storage.enqueue(job))

    def enqueue_many(self, jobs: Iterable[Job], *, conn: object | None = None) -> list[JobHandle]:
        """All of the jobs or, on any error, none."""
        storage, given = self.storage, list(jobs)
        if self._run is not None:
            ids = self._run(given)
        else:
            ids = storage.enqueue_many(given) if conn is None else storage.enqueue_in(conn, given)
        return [self._handle_of(job, job_id) for job, job_id in zip(given, ids, strict=True)]

    async def aenqueue(self, job: Job, *, conn: object | None = None) -> JobHandle:
        """`enqueue` without blocking the event loop, save with `conn`: a connection stays in its thread."""
        if conn is not None:
            return self.enqueue(job, conn=conn)
        import asyncio

        return await asyncio.to_thread(self.enqueue, job)

    async def aenqueue_many(self, jobs: Iterable[Job], *, conn: object | None = None) -> list[JobHandle]:
        """`enqueue_many` likewise."""
        if conn is not None:
            return self.enqueue_many(jobs, conn=conn)
        import asyncio

        return await asyncio.to_thread(self.enqueue_many, list(jobs))

    def enqueued(self, method: str | None) -> list[Job]:
        """All jobs of the method (None: of any), oldest first."""
        where, found, after = JobFilter(method=method), list[Job](), None
        while True:
            page = self.storage.list_jobs(where, limit=1000, after=after)
            found += page.jobs
            after = page.next_cursor
            if after is None:
                return found[::-1]

    def handle(self, job_id: str) -> JobHandle:
        """The handle of a job, whether or not it exists."""
        return JobHandle(job_id, storage=self.storage, retention=self.retention)

    def _handle_of(self, job: Job, job_id: str) -> JobHandle:
        """Of a job for which the one with this id stands."""
        return JobHandle(job_id, storage=self.storage, retention=self.retention, is_new=job_id == job.id)

    def close(self) -> None:
        """Close the connection; harmless when closed. The next use opens another."""
        if self._storage is not None:
            self._storage.close()


class JobHandle:
    """Reads the job's row anew each time it is asked. Raises `JobNotFound` once the row is gone,
    and `StorageUnavailable` when the storage cannot be asked now."""

    __slots__ = ("_retention", "_storage", "id", "is_new")

    def __init__(
        self,
        job_id: str,
        *,
        storage: Storage,
        retention: Retention | None = None,
        is_new: bool | None = None,
    ) -> None:
        """`retention` says how long a job that is cancelled here is kept; None: as by default. `is_new`:
        whether this very job was written when it was enqueued; False: an earlier one that has its unique key
        was kept, and the handle is that one's; None: it was not enqueued here."""
        self.id = job_id
        self.is_new = is_new
        self._storage = storage
        self._retention = retention or BY_DEFAULT

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

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
    def result(self) -> JsonValue:
        """What the function returned; None while the job has not succeeded.

        Raises `ResultNotStored` when it has, and what it returned could not be stored."""
        return _result_of(self.job())

    @property
    def progress(self) -> Progress | None:
        """How far it has come in its newest attempt, as it said with `ctx.progress`, at most about a second
        ago while it runs; None when it has said nothing."""
        return self._storage.progress_of([self.id]).get(self.id)

    def wait(self, timeout: Duration | None = None) -> JsonValue:
        """Wait until the job has ended and return its result.

        Raises `JobFailed` when it ends failed or deleted, `ResultNotStored` when it succeeded with a
        result that could not be stored, and `WaitTimeout` when it has not ended after `timeout` (None: wait
        without a limit); the job goes on then.
        """
        limit = None if timeout is None else parse_duration(timeout, what="timeout")
        job = self._wait_for_end(limit)
        if isinstance(job.state, Succeeded):
            return _result_of(job)
        raise JobFailed(_told(job), job_id=job.id, state=str(job.state_name))

    def cancel(self, *, reason: str = "cancelled by its producer") -> CancelResult:
        """Make the job Deleted, at once or, when it runs, as soon as its worker has ended it."""
        result = self._storage.request_cancel(self.id, reason=reason, retention=self._retention)
        if result is CancelResult.NOT_FOUND:
            raise self._not_found()
        return result

    def retry(self) -> None:
        """Enqueue a Failed job again with fresh budgets. `InvalidTransition` in any other state."""
        self._storage.retry(self.id)

    def _wait_for_end(self, limit: timedelta | None) -> Job:
        deadline = None if limit is None else time.monotonic() + limit.total_seconds()
        pauses = growing_pauses()
        while True:
            job = self.job()
            if job.state_name.is_final:
                return job
            pause_s = next(pauses)
            left_s = pause_s if deadline is None else deadline - time.monotonic()
            if left_s <= 0 and limit is not None:
                raise WaitTimeout(
                    f"The job {self.id} ({job.method}) is still {job.state_name} after "
                    f"{format_duration(limit)}; it goes on. Does a server serve the queue {job.queue!r}?"
                )
            time.sleep(min(pause_s, max(left_s, 0.0)))

    def _not_found(self) -> JobNotFound:
        return JobNotFound(
            f"No job has the id {_bounded(self.id)}; ended jobs are removed after their time to live."
        )


def _bounded(job_id: object) -> str:
    return job_id if isinstance(job_id, str) and len(job_id) <= 100 else shown(job_id)


def _result_of(job: Job) -> JsonValue:
    reason = job.result_not_stored
    if reason is not None:
        raise ResultNotStored(
            f"The job {job.id} ({job.method}) succeeded, but its result was not stored: {reason}",
            job_id=job.id,
            reason=reason,
        )
    return job.result


def _told(job: Job) -> str:
    if isinstance(job.state, Deleted):
        return f"The job {job.id} ({job.method}) was deleted: {job.state.reason or 'no reason given'}"
    error = job.error
    why = "no error is known" if error is None else f"{error.type}: {error.message}"
    return f"The job {job.id} ({job.method}) failed: {why}"
