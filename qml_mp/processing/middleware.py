"""Worker: what wraps the execution of every job, and the hook after every persisted transition."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from qml_mp.clock import Clock, SystemClock
from qml_mp.core.job import Job
from qml_mp.core.state import Processing, StateName
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.context import WorkerContext, WorkerResult
from qml_mp.processing.retry import is_a, type_name

_log = logging.getLogger(__name__)

CallNext = Callable[[Job, WorkerContext], object]
"""The rest of the chain, with the job's own code at its end; returns what that returned."""


class JobMiddleware(Protocol):
    """Wraps execution. The first registered is the outermost.

    It returns what `call_next(job, context)` returned, or something else; what it raises counts as
    raised by the job. `JobInterrupted` must pass through it.
    """

    def __call__(self, job: Job, context: WorkerContext, call_next: CallNext) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """A transition that the storage has accepted; `job` is the row after it, its new state included:
    with the error, the counts and the instants that this transition has written."""

    job: Job
    old: StateName
    new: StateName


StateChangeHook = Callable[[StateChange], None]
"""Runs in the worker after a transition is persisted; what it raises is logged and changes nothing.

Each call has the time limit of the job. One that does not return is ended by killing the worker: before
the job that is a timeout of the job, after it the job is finished already. What a supervisor writes on
behalf of a dead worker (crashes, kills by a limit) is told to no hook, because a supervisor runs no user
code; neither is what clients and the loops write (cancels of waiting jobs, promotions)."""


class TracingMiddleware:
    """One log record when an execution starts and one when it ends, with duration and outcome.

    Extra keys: job_id, worker_id, attempt, method; at the end also duration_s and outcome. The end of
    an execution that did not succeed is a record for debugging: what became of the job, with its error,
    is told once, when it is stored. Payloads and results are never logged.
    """

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()

    def __call__(self, job: Job, context: WorkerContext, call_next: CallNext) -> object:
        fields = {
            "job_id": job.id,
            "worker_id": job.state.worker_id if isinstance(job.state, Processing) else None,
            "attempt": context.attempt,
            "method": job.method,
        }
        started_s = self._clock.monotonic()
        _log.info("job %s (%s) attempt %s started", job.id, job.method, context.attempt, extra=fields)
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
            _log.log(
                logging.INFO if outcome == "succeeded" else logging.DEBUG,
                "job %s (%s) attempt %s %s after %.3f s",
                job.id,
                job.method,
                context.attempt,
                outcome,
                duration_s,
                extra={**fields, "duration_s": duration_s, "outcome": outcome},
            )


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
