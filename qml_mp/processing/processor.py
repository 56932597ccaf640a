"""Worker: one claim in, exactly one outcome out, whatever the job's code does meanwhile.

Knows no pipe, pid, signal or SQL. The only place that catches `BaseException` from user code.
"""

from __future__ import annotations

import inspect
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache, partial
from types import AsyncGeneratorType, GeneratorType
from typing import assert_never, cast

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
from qml_mp.core.payload import EncodedJson
from qml_mp.errors import JobTimeout
from qml_mp.frozen import maker
from qml_mp.processing.binding import PayloadMismatch
from qml_mp.processing.board import Board, ShownProgress, with_extras
from qml_mp.processing.cancel import CancelReason, CancelToken, UserCode
from qml_mp.processing.context import WorkerContext, WorkerResult, checked
from qml_mp.processing.coroutines import run_coroutine
from qml_mp.processing.errors_text import all_frames_of, clean, describe_anything, message_of
from qml_mp.processing.interruptions import drop_pending, interruption_in, why_ended
from qml_mp.processing.job_records import about, note_running
from qml_mp.processing.middleware import CallNext, chain
from qml_mp.processing.own_context import in_own_context
from qml_mp.processing.plain import NOTHING, plain_result
from qml_mp.processing.program import Execution, Program, Terms
from qml_mp.processing.registry import Worker
from qml_mp.processing.retry import is_a
from qml_mp.processing.tracing import RunningAttempt
from qml_mp.storage.storable import MAX_MESSAGE_BYTES
from qml_mp.units import LONGEST, format_duration

_log = logging.getLogger(__name__)

_DONE = WorkerResult.success()  # what every plain value says
_MOST_TERMS = 1000
_NO_IDS: frozenset[str] = frozenset()
_GENERATORS = (GeneratorType, AsyncGeneratorType)
_PLAIN = frozenset({type(None), bool, int, float, str, list, dict, WorkerResult})
"""What most jobs return, and nothing of it is still to be run."""
_new_execution = maker(Execution)
_new_success = maker(Success)


class JobProcessor:
    """Runs claims, one at a time, and judges what comes of them."""

    def __init__(
        self,
        program: Program,
        *,
        default_timeout: timedelta,
        user_code: UserCode,
        clock: Clock,
        rng: random.Random,
        progress: ShownProgress | None = None,
    ) -> None:
        self._program = program
        self._default_timeout = default_timeout
        self._user_code = user_code
        self._clock = clock
        self._rng = rng
        self._tracing = program.tracing
        self.attempt: RunningAttempt | None = None
        """That of the newest run, until `end_attempt`. None: there is none, or nothing follows jobs."""
        self._board = Board(progress, tracing=program.tracing)
        self._terms = lru_cache(_MOST_TERMS)(self._new_terms)

    def resolve(self, claim: Claim) -> Execution:
        """What the claim's run needs, for `run` and for those who watch over it."""
        job = claim.job
        terms = self._terms(job.method, job.timeout, job.max_crashes, job.max_retries, job.failures)
        return _new_execution(claim=claim, terms=terms)

    def run(self, execution: Execution, cancel: CancelToken) -> Outcome:
        """Run the job and return what came of it. Raises nothing that the job's code raises, and leaves the
        context variables and the `decimal` context of the caller as they were. `end_attempt` comes next."""
        return in_own_context(self._traced, execution, cancel)

    def end_attempt(self, outcome: Outcome) -> None:
        """Tell whatever follows jobs what came of the newest run. That is the program's code, and may hang:
        first keep the outcome where a killed worker leaves it to others."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.end(outcome)

    def _traced(self, execution: Execution, cancel: CancelToken) -> Outcome:
        attempt = None if self._tracing is None else self._tracing.attempt(execution.claim)
        outcome = self._run(execution, cancel)
        self.attempt = attempt  # not before: within `app.inline()` others may have run meanwhile
        return outcome

    def _run(self, execution: Execution, cancel: CancelToken) -> Outcome:
        job = execution.job
        if job.payload_error is not None:
            return _refused("InvalidPayload", job.payload_error)
        call = execution.terms.call
        if call is None:
            return _refused("UnknownMethod", f"No worker registered for method: {job.method}")
        key = execution.claim.key
        self._board.begin(key)
        context = WorkerContext.of(job, started_at=self._clock.now(), cancel=cancel, board=self._board)
        began_s = self._clock.monotonic()
        note_running(job)
        ended = self._ended(call, execution, context)
        note_running(None)
        if isinstance(ended, _Returned):
            outcome = self._judge_return(ended, execution, duration_s=self._clock.monotonic() - began_s)
        else:
            outcome = self._judge_raised(ended.error, execution, cancel)
        return with_extras(outcome, self._board.take(job, key))

    def _judge_raised(self, error: BaseException, execution: Execution, cancel: CancelToken) -> Outcome:
        if is_a(error, PayloadMismatch):
            return _refused("InvalidPayload", message_of(error))
        reason = why_ended(error, cancel)
        if reason is None:
            return self._judge_error(error, execution)
        return self._judge_end(error, reason, execution, cancel.message or "")

    def _new_terms(
        self,
        method: str,
        timeout: timedelta | None,
        max_crashes: int | None,
        max_retries: int | None,
        failures: int,
    ) -> Terms:
        worker = self._program.registry.get(method)
        policy = (worker.retry_policy if worker else None) or self._program.retry_policy
        if max_retries is None and worker is not None:
            max_retries = worker.max_retries
        decide = partial(policy.decide, failures=failures + 1, max_retries=max_retries, rng=self._rng)
        return Terms(
            method=method,
            call=None if worker is None else chain(self._program.middleware, _innermost(worker, self._board)),
            encoded=plain_result if worker is None else worker.encoded,
            policy=policy,
            limit=timeout or (worker.timeout if worker else None) or self._default_timeout,
            max_crashes=max_crashes or (worker.max_crashes if worker else None),
            max_retries=max_retries,
            max_attempts=policy.attempts(max_retries=max_retries),
            when_killed=RetryWhenKilled(
                timeout=decide(error=JobTimeout()), memory=decide(error="OutOfMemory")
            ),
        )

    def _ended(self, call: CallNext, execution: Execution, context: WorkerContext) -> _Returned | _Raised:
        job = execution.job
        try:
            with self._user_code():
                return _returned(call(job, context), execution.terms.encoded)
        except BaseException as error:
            if _log.isEnabledFor(logging.DEBUG):  # with -v; elsewhere ours are left out
                text, frames = "job %s: all frames\n%s", all_frames_of(error)
                _log.debug(text, job.id, frames, extra=about(execution.claim))
            return _Raised(error)

    def _judge_return(self, returned: _Returned, execution: Execution, *, duration_s: float) -> Outcome:
        said = returned.said
        match said.kind:
            case "succeeded":
                if returned.dropped is not None:
                    _log.warning(
                        "job %s (%s): the result cannot be stored and is dropped: %s",
                        execution.job.id,
                        execution.job.method,
                        returned.dropped,
                        extra=about(execution.claim),
                    )
                return _new_success(
                    result=returned.result.value,
                    duration=timedelta(seconds=max(duration_s, 0)),
                    not_stored=returned.dropped,
                    encoded=returned.result.text,
                )
            case "failed":
                return Failure(error=self._reported(said, "FailureReported"))
            case "retry":
                return self._judge_retry_request(said, execution)
            case _:
                assert_never(said.kind)

    def _judge_retry_request(self, said: WorkerResult, execution: Execution) -> Retry | Failure:
        terms, failures = execution.terms, execution.job.failures + 1
        delay = terms.policy.next_delay(failures=failures, max_retries=terms.max_retries, rng=self._rng)
        if delay is not None and said.retry_at is not None:
            # At most: an instant at the end of the calendar, written a moment later, would be past it.
            delay = min(max(said.retry_at - self._clock.now(), timedelta(0)), LONGEST)
        return _retry_or_fail(self._reported(said, "RetryRequested"), delay)

    def _judge_end(
        self, error: BaseException, reason: CancelReason, execution: Execution, message: str
    ) -> Outcome:
        interruption = interruption_in(error)
        instead = "" if interruption is not None else self._tell_of_error(error, reason, execution.claim)
        match reason:
            case CancelReason.CANCELLED:
                return Cancelled(reason=message)
            case CancelReason.TIMEOUT:
                limit = format_duration(execution.terms.limit)
                text = f"The attempt exceeded its time limit of {limit}.{instead}"
                told = self._described(interruption or error)
                told = replace(told, type="JobTimeout", message=clean(text, MAX_MESSAGE_BYTES))
                delay = self._retry_delay(execution, JobTimeout())
                return _retry_or_fail(told, delay, kind=AttemptKind.TIMEOUT)
            case CancelReason.SHUTDOWN | CancelReason.ORPHANED | CancelReason.MEMORY:
                return Release(reason=message or str(reason))
            case _:
                assert_never(reason)

    def _tell_of_error(self, error: BaseException, reason: CancelReason, claim: Claim) -> str:
        """That a job which was ended has raised this, in the log and for its record."""
        told = self._described(error)
        _log.warning(
            "job %s (%s) was ended (%s), and raised %s: %s",
            claim.job.id, claim.job.method, reason, told.type, told.message, extra=about(claim),
        )  # fmt: skip
        return f" While it ended it raised {told.type}: {told.message}"

    def _judge_error(self, error: BaseException, execution: Execution) -> Retry | Failure:
        return _retry_or_fail(self._described(error), self._retry_delay(execution, error))

    def _retry_delay(self, execution: Execution, error: BaseException) -> timedelta | None:
        terms, failures = execution.terms, execution.job.failures + 1
        return terms.policy.decide(
            failures=failures, error=error, max_retries=terms.max_retries, rng=self._rng
        )

    def _reported(self, said: WorkerResult, type_when_text: str) -> ErrorInfo:
        if is_a(said.error, BaseException):
            return self._described(cast(BaseException, said.error))
        return ErrorInfo(type=type_when_text, message=clean(cast(str, said.error or ""), MAX_MESSAGE_BYTES))

    def _described(self, error: BaseException) -> ErrorInfo:
        drop_pending(self._user_code)
        return describe_anything(error, user_code=self._user_code)


def _innermost(worker: Worker, board: Board) -> CallNext:
    def call(job: Job, context: WorkerContext) -> object:
        before = board.begin_code(job) if board.follow_ups else _NO_IDS
        try:
            result: object = worker.execute(job, context)
            if type(result) in _PLAIN or not inspect.isawaitable(result):
                return result
            return run_coroutine(result)
        finally:
            if board.follow_ups:
                board.end_code(job, before)

    return call


@dataclass(frozen=True, slots=True, kw_only=True)
class _Returned:
    """The chain returned. `result` is storable; `dropped` says why it is None in place of what came."""

    said: WorkerResult
    result: EncodedJson
    dropped: str | None = None


_new_returned = maker(_Returned)


@dataclass(frozen=True, slots=True)
class _Raised:
    """The chain raised."""

    error: BaseException


def _returned(value: object, encoded: Callable[[object], EncodedJson]) -> _Returned:
    """Read the return value as user code: turning it into JSON can run the job's code too."""
    said, result = _DONE, value
    if type(value) not in _PLAIN and (inspect.isawaitable(value) or isinstance(value, _GENERATORS)):
        kind = type(value).__name__
        raise TypeError(f"The job, or middleware around it, returned a {kind}, of which nothing has run.")
    if isinstance(value, WorkerResult):
        said, result = checked(value), value.result
    try:
        return _new_returned(said=said, result=encoded(result))
    except Exception as problem:
        reason = f"{type(problem).__name__}: {message_of(problem)}"[:1000]
        return _Returned(said=said, result=NOTHING, dropped=reason)


def _retry_or_fail(
    error: ErrorInfo, delay: timedelta | None, *, kind: AttemptKind = AttemptKind.FAILURE
) -> Retry | Failure:
    if delay is None:
        return Failure(error=error, kind=kind)
    return Retry(error=error, delay=delay, kind=kind)


def _refused(kind: str, message: str) -> Failure:
    """A job that can never run as it is stored: no policy is asked."""
    return Failure(error=ErrorInfo(type=kind, message=clean(message, MAX_MESSAGE_BYTES)))
