"""Worker: what wraps the execution of every job, and the hook after every persisted transition."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from qml_mp.clock import Clock, SystemClock
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.state import Processing, StateName
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.context import WorkerContext, WorkerResult
from qml_mp.processing.retry import is_a, type_name
from qml_mp.processing.scalars import ANYTHING

_logger = logging.getLogger(__name__)

_SHORT_S = 0.05

CallNext = Callable[[Job, WorkerContext], object]
"""The rest of the chain, with the job's own code at its end; returns what that returned."""


class JobMiddleware(Protocol):
    """Wraps execution. The first registered is the outermost.

    It returns what `call_next(job, context)` returned, or something else; what it raises counts as
    raised by the job. `JobInterrupted` must pass through it. It may call `call_next` again, within the same
    attempt; of what the job's code said with `context.then`, that of the last call is enqueued.
    """

    def __call__(self, job: Job, context: WorkerContext, call_next: CallNext) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """A transition that the storage has accepted; `job` is the row after it, its new state included:
    with the error, the counts and the instants that this transition has written."""

    job: Job
    old: StateName
    new: StateName

    @classmethod
    def of(cls, job: Job, *, old: StateName) -> StateChange:
        """With a copy of the job, of which the hook may make what it likes: the job itself may run next."""
        payload, metadata = ANYTHING.decode(job.payload, ""), ANYTHING.decode(job.metadata, "")
        return cls(job=replace(job, payload=payload, metadata=metadata), old=old, new=job.state_name)


StateChangeHook = Callable[[StateChange], None]
"""Runs in the worker after a transition is persisted; what it raises is logged and changes nothing.

Each call has the time limit of the job. One that does not return is ended by killing the worker: before
the job that is a timeout of the job, after it the job is finished already. What a supervisor writes on
behalf of a dead worker (crashes, kills by a limit) is told to no hook, because a supervisor runs no user
code; neither is what clients and the loops write (cancels of waiting jobs, promotions)."""


FailureHook = Callable[[Job, ErrorInfo], None]
"""Is called in a worker for each job that has failed for good, whoever wrote that: its worker, or a
supervisor when the process died or was killed by a limit. At least once: that it is to be called is stored
with the failure. What it raises is logged, and it is called again, up to five times in all, after growing
pauses. It has a minute; a worker that it holds up for longer is killed, and another one tries again."""


class TracingMiddleware:
    """A log record when an execution ends, with duration and outcome, and one when it starts.

    That it starts is a record for debugging where the newest execution of its method in this process has
    taken at most 50 ms: of what is over in a moment, the end tells all. What may take longer is INFO, and so
    is the first of each method, so that the log says what runs.
    Extra keys: job_id, worker_id, attempt, method; at the end also duration_s and outcome. The end of
    an execution that did not succeed is a record for debugging: what became of the job, with its error,
    is told once, when it is stored. Payloads and results are never logged.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._short: set[str] = set()
        """The methods whose newest execution was a short one."""
        self._records: dict[int, tuple[tuple[int, int, str], dict[str, Any]]] = {}
        """One of each level that was made in full, and where: others of that place are like it."""

    def __call__(self, job: Job, context: WorkerContext, call_next: CallNext) -> object:
        fields: dict[str, object] = {
            "job_id": job.id,
            "worker_id": job.state.worker_id if isinstance(job.state, Processing) else None,
            "attempt": context.attempt,
            "method": job.method,
        }
        started_s = self._clock.monotonic()
        about = job.id, job.method, context.attempt
        level = logging.DEBUG if job.method in self._short else logging.INFO
        self._log(level, "job %s (%s) attempt %s started", about, fields)
        outcome = "succeeded"
        try:
            result = call_next(job, context)
            outcome = result.kind if isinstance(result, WorkerResult) else "succeeded"
            return result
        except BaseException as error:
            outcome = _ending(error)
            raise
        finally:
            duration_s = round(self._clock.monotonic() - started_s, 6)
            (self._short.add if duration_s <= _SHORT_S else self._short.discard)(job.method)
            self._log(
                logging.INFO if outcome == "succeeded" else logging.DEBUG,
                "job %s (%s) attempt %s %s after %.3f s",
                (*about, outcome, duration_s),
                {**fields, "duration_s": duration_s, "outcome": outcome},
            )

    def _log(self, level: int, text: str, args: tuple[object, ...], fields: dict[str, object]) -> None:
        """As `Logger.log` does, in two thirds of the time: an empty job spends a third of its own on these.
        What others of its process and thread have too is not found out again for each record."""
        if not _logger.isEnabledFor(level):
            return
        if logging.getLogRecordFactory() is not logging.LogRecord:
            _logger.log(level, text, *args, extra=fields)
            return
        # A host may run jobs in its threads (`app.inline`), and fork workers afterwards. No `Thread` itself:
        # this is pickled with the program of a notebook.
        here = os.getpid(), threading.get_ident(), threading.current_thread().name
        where, like = self._records.get(level, (None, {}))
        if where != here:
            like = vars(_logger.makeRecord(_logger.name, level, __file__, 0, text, (), None))
            self._records[level] = here, like
        created = time.time()
        age_s = created - like["created"]
        record = logging.LogRecord.__new__(logging.LogRecord)
        vars(record).update(
            like,
            msg=text,
            args=args,
            created=created,
            msecs=float(int(created % 1 * 1000)),
            relativeCreated=like["relativeCreated"] + 1000 * age_s,
            **fields,
        )
        _logger.handle(record)


def _ending(error: BaseException) -> str:
    if is_a(error, JobTimeout):
        return "passed its time limit"
    return "interrupted" if is_a(error, JobInterrupted) else f"raised {type_name(type(error))}"


def chain(middleware: Sequence[JobMiddleware], innermost: CallNext) -> CallNext:
    """The innermost call wrapped in all middleware, the first of them outermost."""
    wrapped = innermost
    for layer in reversed(middleware):
        wrapped = _wrap(layer, wrapped)
    return wrapped


def _wrap(layer: JobMiddleware, inner: CallNext) -> CallNext:
    return lambda job, context: layer(job, context, inner)
