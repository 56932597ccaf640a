"""Client: jobs that run where they are enqueued, in this process and at once: for tests of user code.

All that is done with a job is what a worker does, by the same parts, on a storage in shared memory: the
payload goes into a row and comes back from it, the claim is numbered, the processor judges, the outcome is
written. Retries run without their pauses, delays are not waited for, follow-up jobs run too, and so does what
jobs enqueue. No event loop runs where a job does: enqueued by a coroutine, it runs in another thread.
Left out are processes, so there are no time limits, cancels or crashes, and recurring jobs: `qml_mp.testing`
has a server for that.
"""

from __future__ import annotations

import contextvars
import logging
import os
import random
import weakref
from asyncio import CancelledError
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from qml_mp.client import JobClient
from qml_mp.clock import SystemClock
from qml_mp.core.job import Claim, Job
from qml_mp.core.new_job import with_changes
from qml_mp.core.outcome import ErrorInfo, Outcome, Retry, Success, not_storable
from qml_mp.core.progress import Progress
from qml_mp.core.state import Enqueued, StateName
from qml_mp.errors import ConfigurationError, JobFailed, JobInterrupted, OutcomeRefused
from qml_mp.inline_calls import Call, Calls
from qml_mp.processing.cancel import CancelToken
from qml_mp.processing.context import WorkerContext
from qml_mp.processing.coroutines import away_from_loops
from qml_mp.processing.middleware import CallNext, StateChange
from qml_mp.processing.own_context import in_own_context
from qml_mp.processing.processor import JobProcessor
from qml_mp.processing.program import Execution, Program
from qml_mp.settings import ServerConfig
from qml_mp.storage.memory_folder import make_memory_folder, remove_if_ours
from qml_mp.storage.sqlite.connection import SqliteConnection
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch, Retention
from qml_mp.storage.waiting import DEFAULT_PATIENCE

logger = logging.getLogger(__name__)

_OF_THE_JOB = (Exception, JobInterrupted, SystemExit, GeneratorExit, CancelledError)
"""What ends an attempt and nothing else."""
_DEEPEST = 20
_MOST_BESIDES = 1000
_MOST_OF_EACH = 100  # besides, for each job of the call; not for what these enqueue, which may have no end
_MANY = 1000

_running: contextvars.ContextVar[tuple[Call, ...]] = contextvars.ContextVar("qml_mp_inline", default=())
"""Of the jobs that have enqueued each other and wait for the newest, the call that each comes of: those of
several apps may enqueue each other. A thread that is given a job's context has it too, as that of `aenqueue`
is."""


@contextmanager
def running_inline(client: JobClient, program: Program, *, raise_failures: bool) -> Iterator[None]:
    """Within the block, what is enqueued through the client runs at once, on a storage of its own."""
    storage = _storage_in_memory()
    runs = _Inline(program, storage, raise_failures=raise_failures)
    storage.run_enqueued = runs.run_enqueued
    try:
        with client.attached(storage.url, storage, run=runs.run):
            yield
    finally:  # a handle that is used later opens it again
        storage.run_enqueued = None


class _Inline:
    """The runs of one block."""

    def __init__(self, program: Program, storage: Storage, *, raise_failures: bool) -> None:
        config = program.config or ServerConfig()
        self._program = program
        self._storage = storage
        self._raises = raise_failures
        self._retention = BY_DEFAULT if program.config is None else Retention.of(config)
        self._raised = _Raised()
        self._processor = JobProcessor(
            replace(program, middleware=(self._raised, *program.middleware)),
            default_timeout=config.job_timeout,
            user_code=nullcontext,
            clock=SystemClock(),
            rng=random.Random(),
            progress=_LastProgress(),
        )
        self._calls = Calls()

    def run(self, jobs: Sequence[Job]) -> list[str]:
        """Enqueue the jobs and run all that there is; the ids that stand for them, in order.

        With `raise_failures`, raises what the first job that ended failed has raised: of these jobs, where a
        job enqueues them, which may run its siblings too.
        """

        def enqueue() -> list[str]:
            return self._storage.enqueue_many(map(_due_now, jobs), retention=self._retention)

        return self.run_enqueued([job.id for job in jobs if isinstance(job, Job)], enqueue)

    def run_enqueued(self, job_ids: Sequence[str], enqueue: Callable[[], list[str]]) -> list[str]:
        """`run` for jobs of these that `enqueue` makes Enqueued; it gives the ids that stand for them."""
        return away_from_loops(partial(self._run, job_ids), enqueue)

    def _run(self, job_ids: Sequence[str], enqueue: Callable[[], list[str]]) -> list[str]:
        running = _running.get()
        if len(running) >= _DEEPEST:
            raise ConfigurationError(
                f"Within app.inline(), jobs enqueue each other more than {_DEEPEST} deep. One that enqueues "
                "itself again, even with a delay, never ends here: test what it enqueues with app.enqueued()."
            )
        # The innermost: this thread may be running a job of another call.
        outer = next((call for call in reversed(running) if call.block is self._calls), None)
        call = outer or Call(block=self._calls, left=_MOST_BESIDES + _MOST_OF_EACH * len(job_ids))
        try:
            at_work = self._calls.expect(call, job_ids, room=len(job_ids))
            ids = enqueue()
            # A job waits for none that was under way before: that may be itself, or wait for this one.
            awaited = set(ids) - at_work if running else set(ids)
            if outer is None:
                call.job_ids |= awaited
                awaited = call.job_ids  # with all that will come of them
            self._run_all(call, awaited)
            failures = self._calls.pop_failures(call, awaited)
        finally:
            if outer is None:
                self._calls.forget(call)
        for failure in failures:
            if self._raises or isinstance(failure, _TooMany) or not isinstance(failure, _OF_THE_JOB):
                raise failure
        return ids

    def _run_all(self, call: Call, awaited: Collection[str]) -> None:
        """Run what can run until nothing is left, and other threads have ended what is awaited."""
        while (taken := self._calls.take(self._fetch, awaited, call=call)) is not None:
            claim, of = taken
            failure: BaseException | None = None
            try:
                # Its hooks, too, wait for nothing that is under way: that is this very job.
                token = _running.set((*_running.get(), of))
                try:
                    failure = self._run_one(claim, of, by=call) if of.left >= 0 else self._refuse(claim)
                finally:
                    _running.reset(token)
            finally:
                self._calls.end(claim, failure)

    def _fetch(self) -> Claim | None:
        fetch = Fetch(
            worker_id="inline", server_id="inline", queues=(), methods=self._program.registry.methods()
        )
        while True:
            claim = self._storage.fetch_and_lock_job(fetch)
            if claim is not None or not self._storage.promote_due(limit=_MANY).count:
                return claim

    def _run_one(self, claim: Claim, of: Call, *, by: Call) -> BaseException | None:
        """Run a job of a call; what that one is to raise, None when it did not fail."""
        execution = self._processor.resolve(claim)
        self._tell(claim.job, StateName.ENQUEUED)
        # In a context of its own, as in a worker: nothing that the job sets is seen by who enqueued it.
        context = contextvars.copy_context()
        outcome = context.run(self._outcome, execution, of)
        # Before others know that the attempt has ended: they may be in the next one at once.
        error = self._raised.take(claim.job)
        job = self._finish(claim, outcome)
        if job is not None:
            self._tell(job, StateName.PROCESSING)
        if error is not None and not isinstance(error, _OF_THE_JOB):  # Ctrl-C, and how pytest ends a test
            if of is by or isinstance(error, KeyboardInterrupt):  # which is meant for this thread
                raise error
            return error
        if job is None or job.state_name is not StateName.FAILED:
            return None
        told = job.error
        self._tell_of_failure(job, told)
        text = "no error is known" if told is None else f"{told.type}: {told.message}"
        return error or JobFailed(
            f"The job {job.id} ({job.method}) failed: {text}", job_id=job.id, state=StateName.FAILED
        )

    def _refuse(self, claim: Claim) -> BaseException:
        endless = _TooMany()
        self._storage.finish(claim, not_storable(endless), retention=self._retention)
        return endless

    def _outcome(self, execution: Execution, call: Call) -> Outcome:
        outcome = self._processor.run(execution, CancelToken.never())
        self._processor.end_attempt(outcome)
        if isinstance(outcome, Retry):
            return replace(outcome, delay=timedelta())
        if isinstance(outcome, Success) and outcome.extras is not None:
            due = tuple(map(_due_now, outcome.extras.follow_ups))
            self._calls.expect(call, [job.id for job in due])
            return replace(outcome, extras=replace(outcome.extras, follow_ups=due))
        return outcome

    def _finish(self, claim: Claim, outcome: Outcome) -> Job | None:
        try:
            return self._storage.finish(claim, outcome, retention=self._retention).job
        except OutcomeRefused as error:
            return self._storage.finish(claim, not_storable(error), retention=self._retention).job

    def _tell(self, job: Job, old: StateName) -> None:
        hook = self._program.on_state_change
        if hook is not None:
            try:
                change = StateChange.of(job, old=old)
                in_own_context(lambda told, _: hook(told), change, None)
            except Exception:
                logger.exception("The state-change hook failed", extra={"job_id": job.id})

    def _tell_of_failure(self, job: Job, error: ErrorInfo | None) -> None:
        """As a worker does, but once: a call that failed would come again after a pause."""
        hook = self._program.on_failure
        if hook is not None and error is not None:
            try:
                in_own_context(hook, replace(job), error)
            except Exception:
                logger.exception("on_failure of job %s failed", job.id, extra={"job_id": job.id})


class _InlineStorage(Storage):
    """That of one block, within which jobs that are retried by hand run at once too."""

    run_enqueued: Callable[[Sequence[str], Callable[[], list[str]]], list[str]] | None = None
    """See `_Inline`; None: the block has ended."""

    def retry(self, job_id: str) -> Job:
        retried = list[Job]()
        retry = super().retry

        def enqueue() -> list[str]:
            retried.append(retry(job_id))
            return [retried[0].id]

        self._at_once([job_id], enqueue)
        return retried[0]

    def retry_many(self, job_ids: Sequence[str], *, until: datetime) -> list[str]:
        return self._at_once(job_ids, partial(super().retry_many, job_ids, until=until))

    def _at_once(self, job_ids: Sequence[str], enqueue: Callable[[], list[str]]) -> list[str]:
        return enqueue() if self.run_enqueued is None else self.run_enqueued(job_ids, enqueue)


class _TooMany(ConfigurationError):
    """There seems to be no end."""

    def __init__(self) -> None:
        super().__init__(
            f"Within app.inline(), more than {_MOST_BESIDES:,} follow-up jobs and retries came of one call "
            "of enqueue. A job that has itself follow again, even with a delay, never ends here."
        )


class _LastProgress:
    """What the running jobs have said last of how far they have come."""

    def __init__(self) -> None:
        self.newest_job: Job | None = None
        self._said: dict[str, Progress] = {}

    def show(self, job: Job, done: float, total: float | None, note: str) -> None:
        note.encode(errors="replace")  # as a worker does, which has room for text alone
        self.newest_job = job
        self._said[job.id] = Progress(
            done=float(done), total=None if total is None else float(total), note=note
        )

    def newest_of(self, job: Job) -> Progress | None:
        return self._said.pop(job.id, None)


class _Raised:
    """The outermost middleware: keeps what an execution has raised, as it was."""

    def __init__(self) -> None:
        self._errors: dict[str, BaseException] = {}

    def __call__(self, job: Job, context: WorkerContext, call_next: CallNext) -> Any:
        try:
            return call_next(job, context)
        except BaseException as error:
            self._errors[job.id] = error
            raise

    def take(self, job: Job) -> BaseException | None:
        """Of the attempt that has just run, the only one of its job until its outcome is written."""
        return self._errors.pop(job.id, None)


def _due_now(job: Job) -> Job:
    """The job as if it had no delay. What is no job is refused where it is stored."""
    if not isinstance(job, Job) or job.run_at is None:
        return job
    state = Enqueued(enqueued_at=job.created_at, queue=job.queue)
    return with_changes(job, state=state, run_at=None)


def _storage_in_memory() -> _InlineStorage:
    """Gone with the last handle on it, and not as late as this process: a test suite makes many."""
    folder = make_memory_folder()
    database = SqliteDatabase(f"{folder}/memory.db", clock=SystemClock(), busy_timeout=DEFAULT_PATIENCE)
    storage = _InlineStorage(database)
    weakref.finalize(storage, _let_go, database.connection, folder, os.getpid())
    return storage


def _let_go(connection: SqliteConnection, folder: str, maker_pid: int) -> None:
    if os.getpid() == maker_pid:
        connection.close()
        remove_if_ours(folder, maker_pid)
