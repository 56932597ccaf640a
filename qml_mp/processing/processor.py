"""Worker: one claim in, exactly one outcome out, whatever the job's code does meanwhile.

Knows no pipe, pid, signal or SQL. The only place that catches `BaseException` from user code.
"""

from __future__ import annotations

import inspect
import logging
import random
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import NoReturn, assert_never, cast

from qml_mp.clock import Clock
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    ErrorInfo,
    Failure,
    Outcome,
    Release,
    Retry,
    RetryWhenKilled,
    Success,
)
from qml_mp.core.payload import JsonValue
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.binding import PayloadMismatch
from qml_mp.processing.cancel import CancelReason, CancelToken
from qml_mp.processing.context import WorkerContext
from qml_mp.processing.errors_text import MAX_MESSAGE_CHARS, clean, describe, describe_type, message_of
from qml_mp.processing.guard import UserCodeGuard
from qml_mp.processing.middleware import chain
from qml_mp.processing.plain import plain_result
from qml_mp.processing.program import Program
from qml_mp.processing.registry import Worker, run_coroutine
from qml_mp.processing.result import WorkerResult
from qml_mp.processing.retry import RetryPolicy, is_a, type_name
from qml_mp.units import format_duration

_log = logging.getLogger(__name__)

_LONGEST_WAIT = timedelta(days=36_525)
"""For a `retry_at` at the end of the calendar, which no storage could hold when that is written later."""


class JobProcessor:
    """Runs claims, one at a time, and judges what comes of them."""

    def __init__(
        self,
        program: Program,
        *,
        default_timeout: timedelta,
        guard: UserCodeGuard,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self._program = program
        self._default_timeout = default_timeout
        self._guard = guard
        self._clock = clock
        self._rng = rng

    def limit(self, job: Job) -> timedelta:
        """The time limit of one attempt: the job's own, else its worker's, else the server's."""
        worker = self._program.registry.get(job.method)
        of_worker = None if worker is None else worker.timeout
        return job.timeout or of_worker or self._default_timeout

    def max_attempts(self, job: Job) -> int:
        """Attempts that may fail before the job ends Failed, the first included."""
        return self._policy(job).attempts(max_retries=job.max_retries)

    def max_crashes(self, job: Job) -> int | None:
        """The crash budget: the job's own, else its worker's; None: the server's."""
        worker = self._program.registry.get(job.method)
        return job.max_crashes or (None if worker is None else worker.max_crashes)

    def run(self, claim: Claim, cancel: CancelToken) -> Outcome:
        """Run the job and return what came of it. Raises nothing that the job's code raises."""
        job = claim.job
        if job.payload_error is not None:
            return _refused("InvalidPayload", job.payload_error)
        worker = self._program.registry.get(job.method)
        if worker is None:
            return _refused("UnknownMethod", f"No worker registered for method: {job.method}")
        context = WorkerContext.of(job, started_at=self._clock.now(), cancel=cancel)
        began_s = self._clock.monotonic()
        ended = self._execute(worker, job, context)
        match ended:
            case _Returned():
                return self._judge_return(ended, job, duration_s=self._clock.monotonic() - began_s)
            case _Raised(error=error) if is_a(error, PayloadMismatch):
                return _refused("InvalidPayload", message_of(error))
            case _Raised(error=error) if is_a(error, JobInterrupted):
                return self._judge_interruption(error, job, cancel)
            case _Raised(error=error):
                return self._judge_error(error, job)
            case _:
                assert_never(ended)

    def retry_when_killed(self, job: Job) -> RetryWhenKilled:
        """Whether and when the job runs again should this attempt be killed by a limit."""
        return RetryWhenKilled(
            timeout=self._retry_delay(JobTimeout(), job), memory=self._retry_delay("OutOfMemory", job)
        )

    def _execute(self, worker: Worker, job: Job, context: WorkerContext) -> _Returned | _Raised:
        def innermost(job: Job, context: WorkerContext) -> object:
            result = worker.execute(job, context)
            return run_coroutine(result) if inspect.iscoroutine(result) else result

        call = chain(self._program.middleware, innermost)
        try:
            with self._guard.user_code():
                return _returned(call(job, context))
        except BaseException as error:
            return _Raised(error)

    def _judge_return(self, returned: _Returned, job: Job, *, duration_s: float) -> Outcome:
        said = returned.said
        match said.kind:
            case "succeeded":
                if returned.dropped is not None:
                    _log.warning(
                        "job %s (%s): the result cannot be stored and is dropped: %s",
                        job.id,
                        job.method,
                        returned.dropped,
                        extra={"job_id": job.id, "method": job.method},
                    )
                return Success(
                    result=returned.result,
                    duration=timedelta(seconds=max(duration_s, 0)),
                    not_stored=returned.dropped,
                )
            case "failed":
                return Failure(error=self._reported(said, "FailureReported"))
            case "retry":
                return self._judge_retry_request(said, job)
            case _:
                assert_never(said.kind)

    def _judge_retry_request(self, said: WorkerResult, job: Job) -> Retry | Failure:
        error = self._reported(said, "RetryRequested")
        delay = self._policy(job).next_delay(
            failures=job.failures + 1, max_retries=job.max_retries, rng=self._rng
        )
        if delay is None:
            return Failure(error=error)
        if said.retry_at is not None:
            delay = min(max(said.retry_at - self._clock.now(), timedelta(0)), _LONGEST_WAIT)
        return Retry(error=error, delay=delay)

    def _judge_interruption(self, interruption: BaseException, job: Job, cancel: CancelToken) -> Outcome:
        reason = CancelReason.TIMEOUT if is_a(interruption, JobTimeout) else cancel.reason
        message = cancel.message or ""
        match reason:
            case None:  # the job raised it of its own accord: a failed attempt like any other
                return self._judge_error(interruption, job)
            case CancelReason.CANCELLED:
                return Cancelled(reason=message)
            case CancelReason.TIMEOUT:
                limit = format_duration(self.limit(job))
                error = replace(
                    self._described(interruption),
                    type="JobTimeout",
                    message=f"The attempt exceeded its time limit of {limit}.",
                )
                return self._judge(error, JobTimeout(), job, kind=AttemptKind.TIMEOUT)
            case CancelReason.SHUTDOWN | CancelReason.ORPHANED | CancelReason.MEMORY:
                return Release(reason=message or str(reason))
            case _:
                assert_never(reason)

    def _judge_error(self, error: BaseException, job: Job) -> Retry | Failure:
        return self._judge(self._described(error), error, job, kind=AttemptKind.FAILURE)

    def _judge(
        self, info: ErrorInfo, error: BaseException, job: Job, *, kind: AttemptKind
    ) -> Retry | Failure:
        delay = self._retry_delay(error, job)
        if delay is None:
            return Failure(error=info, kind=kind)
        return Retry(error=info, delay=delay, kind=kind)

    def _retry_delay(self, error: BaseException | str, job: Job) -> timedelta | None:
        return self._policy(job).decide(
            failures=job.failures + 1, error=error, max_retries=job.max_retries, rng=self._rng
        )

    def _policy(self, job: Job) -> RetryPolicy:
        worker = self._program.registry.get(job.method)
        of_worker = None if worker is None else worker.retry_policy
        return of_worker or self._program.retry_policy

    def _reported(self, said: WorkerResult, type_when_text: str) -> ErrorInfo:
        if is_a(said.error, BaseException):
            return self._described(cast(BaseException, said.error))
        return ErrorInfo(type=type_when_text, message=clean(cast(str, said.error or ""), MAX_MESSAGE_CHARS))

    def _described(self, error: BaseException) -> ErrorInfo:
        # The exception's own __str__ runs here: user code, which may raise anything or never end.
        try:
            with self._guard.user_code():
                return describe(error)
        except BaseException as problem:
            return describe_type(error, why=f"describing it raised {type_name(type(problem))}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Returned:
    """The chain returned. `result` is storable; `dropped` says why it is None in place of what came."""

    said: WorkerResult
    result: JsonValue
    dropped: str | None = None


@dataclass(frozen=True, slots=True)
class _Raised:
    """The chain raised."""

    error: BaseException


def _returned(value: object) -> _Returned:
    """Read the return value inside the guard: turning it into JSON can run the job's code too."""
    said = value if isinstance(value, WorkerResult) else WorkerResult.success(value)
    _check(said)
    try:
        return _Returned(said=said, result=plain_result(said.result))
    except Exception as problem:
        reason = f"{type(problem).__name__}: {message_of(problem)}"[:1000]
        return _Returned(said=said, result=None, dropped=reason)


def _check(said: WorkerResult) -> None:
    if said.kind not in ("succeeded", "retry", "failed"):
        _reject("kind", said.kind, '"succeeded", "retry" or "failed"')
    if said.error is not None and not is_a(said.error, (str, BaseException)):
        _reject("error", said.error, "text or an exception")
    if said.retry_at is not None and said.retry_at.utcoffset() is None:
        _reject("retry_at", said.retry_at, "an aware datetime")


def _reject(name: str, value: object, wanted: str) -> NoReturn:
    raise TypeError(f"WorkerResult.{name} is a {type(value).__name__}; it must be {wanted}.")


def _refused(kind: str, message: str) -> Failure:
    """A job that can never run as it is stored: no policy is asked."""
    return Failure(error=ErrorInfo(type=kind, message=clean(message, MAX_MESSAGE_CHARS)))
