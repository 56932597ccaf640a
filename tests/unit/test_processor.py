"""Tests: one claim in, one outcome out, for everything that a job's code can do."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import AttemptKind, Cancelled, ErrorInfo, Failure, Outcome, Release, Retry, Success
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import Processing
from qml_mp.errors import InvalidJob, JobInterrupted, JobTimeout
from qml_mp.processing.cancel import CancelReason, CancelToken
from qml_mp.processing.context import WorkerContext
from qml_mp.processing.guard import NullGuard, UserCodeGuard
from qml_mp.processing.middleware import CallNext, JobMiddleware
from qml_mp.processing.processor import DROPPED_RESULT_KEY, JobProcessor
from qml_mp.processing.program import Program
from qml_mp.processing.registry import FunctionWorker, Worker, WorkerRegistry
from qml_mp.processing.result import WorkerResult
from qml_mp.processing.retry import RetryPolicy

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
STEADY = RetryPolicy.fixed(10, max_attempts=3, jitter=0)
TEN_S = timedelta(seconds=10)


class SteppingClock:
    """The wall stands still; every look at the monotonic clock is 2 seconds after the one before."""

    def __init__(self) -> None:
        self.looks = 0

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        self.looks += 1
        return 2.0 * self.looks


@dataclass(frozen=True)
class Thumbnail:
    path: Path
    taken: date


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def processor_of(
    worker: Worker | Callable[..., Any] | None,
    *,
    middleware: tuple[JobMiddleware, ...] = (),
    policy: RetryPolicy = STEADY,
    guard: UserCodeGuard | None = None,
) -> JobProcessor:
    registry = WorkerRegistry()
    if worker is not None:
        registry.register(worker if isinstance(worker, Worker) else FunctionWorker(worker, method_name="f"))
    return JobProcessor(
        Program(registry=registry, retry_policy=policy, middleware=middleware),
        default_timeout=timedelta(minutes=5),
        guard=guard or NullGuard(),
        clock=SteppingClock(),
        rng=random.Random(1),
    )


def claim_of(payload: JsonValue = None, **fields: Any) -> Claim:
    state = Processing(started_at=NOW, worker_id="w-1", server_name="s#1")
    job = replace(Job.new("f", payload, now=NOW).in_state(state), claim_seq=1, **fields)
    return Claim(job=job, worker_id="w-1", server_id="s#1")


def cancelled(reason: CancelReason, message: str = "enough") -> CancelToken:
    return CancelToken(lambda _: (reason, message))


def run(
    worker: Worker | Callable[..., Any] | None,
    claim: Claim | None = None,
    cancel: CancelToken | None = None,
    **options: Any,
) -> Outcome:
    return processor_of(worker, **options).run(claim or claim_of(), cancel or CancelToken.never())


def error_of(outcome: Outcome) -> ErrorInfo:
    assert isinstance(outcome, Retry | Failure)
    return outcome.error


def raising(error: BaseException) -> Callable[[], None]:
    def f() -> None:
        raise error

    return f


def returning(value: object) -> Callable[[], object]:
    return lambda: value


def test_a_returned_value_is_a_success_with_its_duration() -> None:
    assert run(returning({"n": 1})) == Success(result={"n": 1}, duration=timedelta(seconds=2))


def test_arguments_come_from_the_payload() -> None:
    def f(a: int, when: date) -> str:
        return f"{a} {when:%d.%m.%Y}"

    outcome = run(f, claim_of({"a": 3, "when": "2025-03-01"}))

    assert isinstance(outcome, Success)
    assert outcome.result == "3 01.03.2025"


def test_the_context_tells_what_came_before() -> None:
    seen: list[WorkerContext] = []

    def f(ctx: WorkerContext) -> None:
        seen.append(ctx)

    error = ErrorInfo(type="KeyError", message="'a'")
    run(f, claim_of(failures=2, crashes=1, last_error=error))

    assert (seen[0].attempt, seen[0].previous_exception, seen[0].started_at) == (4, error, NOW)


def test_an_async_function_is_run_to_its_end() -> None:
    async def f() -> int:
        await asyncio.sleep(0)
        return 7

    outcome = run(f)

    assert isinstance(outcome, Success)
    assert outcome.result == 7


def test_a_result_of_dataclasses_and_dates_is_stored_as_json() -> None:
    value = [
        Thumbnail(path=Path("a.png"), taken=date(2025, 3, 1)),
        {1: Decimal("0.1")},
        (timedelta(seconds=2),),
    ]

    outcome = run(returning(value))

    assert isinstance(outcome, Success)
    assert outcome.result == [{"path": "a.png", "taken": "2025-03-01"}, {"1": "0.1"}, [2.0]]


def cyclic() -> list[object]:
    cycle: list[object] = []
    cycle.append(cycle)
    return cycle


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "value",
    [
        object(),
        b"bytes",
        float("nan"),
        2**64,
        "a\0b",
        "\ud800",
        "x" * 1_048_577,
        {(1, 2): 3},
        cyclic(),
        {"a": {1: open}},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result_that_cannot_be_stored_is_dropped_and_the_job_still_succeeds(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        outcome = run(returning(value))

    assert isinstance(outcome, Success)
    assert isinstance(outcome.result, dict)
    assert list(outcome.result) == [DROPPED_RESULT_KEY] == ["qml_mp_dropped_result"]
    assert "was not stored" in caplog.text


def test_a_result_of_exactly_the_limit_is_stored() -> None:
    outcome = run(returning("x" * (1024 * 1024 - 2)))

    assert isinstance(outcome, Success)
    assert isinstance(outcome.result, str)


def test_a_worker_result_says_success_retry_or_failure() -> None:
    assert run(returning(WorkerResult.success([1], {"note": "x"}))) == Success(
        result=[1], duration=timedelta(seconds=2)
    )
    assert run(returning(WorkerResult.failure("never"))) == Failure(
        error=ErrorInfo(type="FailureReported", message="never")
    )
    assert run(returning(WorkerResult.retry("busy"))) == Retry(
        error=ErrorInfo(type="RetryRequested", message="busy"), delay=TEN_S
    )


def test_a_retry_may_name_its_instant_and_a_past_one_means_now() -> None:
    later = run(returning(WorkerResult.retry("busy", NOW + timedelta(hours=1))))
    past = run(returning(WorkerResult.retry("busy", NOW - timedelta(hours=1))))

    assert isinstance(later, Retry)
    assert isinstance(past, Retry)
    assert (later.delay, past.delay) == (timedelta(hours=1), timedelta(0))


def test_a_retry_that_is_asked_for_is_bounded_by_the_attempts() -> None:
    outcome = run(returning(WorkerResult.retry("busy", NOW)), claim_of(failures=2))

    assert isinstance(outcome, Failure)
    assert outcome.error.message == "busy"


def test_a_worker_result_may_carry_an_exception() -> None:
    outcome = run(returning(WorkerResult.failure(KeyError("a"))))

    assert (error_of(outcome).type, error_of(outcome).message) == ("KeyError", "'a'")


@pytest.mark.parametrize(
    "result",
    [
        WorkerResult.retry("busy", datetime(2025, 3, 1)),  # noqa: DTZ001 - naive is what is refused
        WorkerResult.failure(3),  # type: ignore[arg-type]  # what is tested
    ],
)
def test_a_worker_result_that_makes_no_sense_is_a_failed_attempt(result: WorkerResult) -> None:
    assert error_of(run(returning(result))).type == "TypeError"


def test_an_exception_is_a_failed_attempt_judged_by_the_policy() -> None:
    first = run(raising(ValueError("bad width")))
    last = run(raising(ValueError("bad width")), claim_of(failures=2))

    assert isinstance(first, Retry)
    assert (first.delay, first.kind, first.error.type) == (TEN_S, AttemptKind.FAILURE, "ValueError")
    assert first.error.traceback is not None
    assert first.error.traceback.count("File ") == 1  # the job's own frame and none of ours
    assert isinstance(last, Failure)


@pytest.mark.fault(11)
@pytest.mark.parametrize(
    "error", [SystemExit(0), SystemExit("bye"), KeyboardInterrupt(), GeneratorExit(), BaseException("base")]
)
def test_no_exception_whatsoever_escapes(error: BaseException) -> None:
    outcome = run(raising(error))

    assert isinstance(outcome, Retry)
    assert outcome.error.type == type(error).__name__


@pytest.mark.fault(11)
def test_sys_exit_in_an_async_job_is_a_failed_attempt() -> None:
    async def f() -> None:
        sys.exit(0)

    assert error_of(run(f)).type == "SystemExit"


@pytest.mark.fault(9)
def test_running_out_of_memory_is_a_failed_attempt() -> None:
    def f() -> bytes:
        return b"x" * (1 << 62)

    assert error_of(run(f)).type == "MemoryError"


@pytest.mark.fault(16)
def test_endless_recursion_is_a_failed_attempt() -> None:
    def f() -> None:
        f()

    assert error_of(run(f)).type == "RecursionError"


@pytest.mark.fault(32)
def test_an_exception_that_cannot_be_printed_is_a_failed_attempt() -> None:
    assert "raised RuntimeError" in error_of(run(raising(Unprintable()))).message


class SaboteurGuard:
    """Raises what it is given at the n-th time that user code ends, as a signal handler could."""

    def __init__(self, *, entry: int, error: BaseException) -> None:
        self.entries = 0
        self.entry = entry
        self.error = error
        self.inside = False

    @contextmanager
    def user_code(self) -> Iterator[None]:
        assert not self.inside
        self.entries += 1
        self.inside = True
        try:
            yield
            if self.entries == self.entry:
                raise self.error
        finally:
            self.inside = False


@pytest.mark.fault(32)
def test_an_exception_whose_description_is_interrupted_is_still_recorded() -> None:
    guard = SaboteurGuard(entry=2, error=JobTimeout("late"))

    outcome = run(raising(ValueError("slow to print")), guard=guard)

    assert isinstance(outcome, Retry)
    assert (outcome.kind, outcome.error.type) == (AttemptKind.FAILURE, "ValueError")
    assert "JobTimeout" in outcome.error.message
    assert outcome.error.traceback is not None


def test_an_interruption_at_the_very_end_of_user_code_is_caught() -> None:
    guard = SaboteurGuard(entry=1, error=JobInterrupted("now"))

    assert run(returning(1), cancel=cancelled(CancelReason.CANCELLED), guard=guard) == Cancelled(
        reason="enough"
    )


def interrupted(ctx: WorkerContext) -> None:
    ctx.cancel.raise_if_cancelled()


def test_a_cancelled_job_ends_with_the_reason() -> None:
    assert run(interrupted, cancel=cancelled(CancelReason.CANCELLED, "by hand")) == Cancelled(
        reason="by hand"
    )


@pytest.mark.parametrize("reason", [CancelReason.SHUTDOWN, CancelReason.ORPHANED])
def test_a_job_interrupted_by_the_server_is_given_back(reason: CancelReason) -> None:
    assert run(interrupted, cancel=cancelled(reason, "the server stops")) == Release(
        reason="the server stops"
    )


def test_a_job_past_its_limit_is_judged_by_the_policy() -> None:
    first = run(interrupted, claim_of(timeout=timedelta(seconds=90)), cancelled(CancelReason.TIMEOUT))
    last = run(interrupted, claim_of(failures=2), cancelled(CancelReason.TIMEOUT))

    assert isinstance(first, Retry)
    assert (first.kind, first.error.type, first.delay) == (AttemptKind.TIMEOUT, "JobTimeout", TEN_S)
    assert first.error.message == "The attempt exceeded its time limit of 1m30s."
    assert "raise_if_cancelled" in (first.error.traceback or "")
    assert isinstance(last, Failure)
    assert last.kind is AttemptKind.TIMEOUT


def test_a_timeout_is_a_timeout_even_when_the_token_was_cancelled_for_another_reason_before() -> None:
    def f(ctx: WorkerContext) -> None:
        if ctx.cancel.is_cancelled:
            raise JobTimeout("as the signal handler does")

    outcome = run(f, cancel=cancelled(CancelReason.SHUTDOWN))

    assert isinstance(outcome, Retry)
    assert outcome.kind is AttemptKind.TIMEOUT


def test_a_timeout_can_be_excluded_from_retries() -> None:
    policy = RetryPolicy.fixed(never_retry=("JobTimeout",))

    assert isinstance(run(interrupted, cancel=cancelled(CancelReason.TIMEOUT), policy=policy), Failure)
    assert isinstance(processor_of(interrupted, policy=policy).timeout_verdict(claim_of()), Failure)


def test_a_job_that_swallows_its_interruption_and_returns_has_succeeded() -> None:
    def f(ctx: WorkerContext) -> str:
        try:
            ctx.cancel.raise_if_cancelled()
        except JobInterrupted:
            return "finished all the same"
        return "?"

    outcome = run(f, cancel=cancelled(CancelReason.CANCELLED))

    assert isinstance(outcome, Success)
    assert outcome.result == "finished all the same"


def test_an_interruption_that_nobody_asked_for_is_a_failed_attempt() -> None:
    outcome = run(raising(JobInterrupted("my own idea")))

    assert isinstance(outcome, Retry)
    assert (outcome.kind, outcome.error.type) == (AttemptKind.FAILURE, "JobInterrupted")


@pytest.mark.fault(30)
def test_an_unknown_method_fails_for_good_with_the_references_words() -> None:
    assert run(None) == Failure(
        error=ErrorInfo(type="UnknownMethod", message="No worker registered for method: f")
    )


@pytest.mark.fault(27)
def test_a_stored_payload_that_cannot_be_read_fails_for_good() -> None:
    outcome = run(returning(1), claim_of(payload_error="The stored text is not readable JSON"))

    assert outcome == Failure(
        error=ErrorInfo(type="InvalidPayload", message="The stored text is not readable JSON")
    )


@pytest.mark.parametrize("payload", [{"x": 1}, [1], "text", 3])
def test_a_payload_that_does_not_bind_fails_for_good(payload: JsonValue) -> None:
    outcome = run(returning(1), claim_of(payload))

    assert isinstance(outcome, Failure)
    assert outcome.error.type == "InvalidPayload"


def test_an_invalid_job_that_the_function_itself_enqueued_is_an_ordinary_failure() -> None:
    assert isinstance(run(raising(InvalidJob("nonsense"))), Retry)


@pytest.mark.fault(62)
@pytest.mark.parametrize("when", ["before", "after"])
def test_middleware_that_raises_is_a_failed_attempt(when: str) -> None:
    def broken(job: Job, context: WorkerContext, call_next: CallNext) -> object:
        if when == "after":
            call_next(job, context)
        raise LookupError("middleware")

    outcome = run(returning(1), middleware=(broken,))

    assert isinstance(outcome, Retry)
    assert outcome.error.type == "LookupError"


def test_middleware_sees_and_may_replace_the_result() -> None:
    def doubling(job: Job, context: WorkerContext, call_next: CallNext) -> object:
        return [call_next(job, context)] * 2

    outcome = run(returning(1), middleware=(doubling, doubling))

    assert isinstance(outcome, Success)
    assert outcome.result == [[1, 1], [1, 1]]


class Slow(Worker):
    method_name = "f"
    timeout = timedelta(seconds=30)
    retry_policy = RetryPolicy.fixed(99, max_attempts=2, jitter=0)

    def execute(self, job: Job, context: WorkerContext) -> JsonValue:
        raise OSError(f"{job.method} {context.attempt}")


class AsyncWorker(Worker):
    method_name = "f"

    async def execute(self, job: Job, context: WorkerContext) -> JsonValue:  # type: ignore[override]
        return [job.method, context.attempt]


def test_a_workers_own_policy_and_limit_hold_for_its_jobs() -> None:
    processor = processor_of(Slow())

    outcome = processor.run(claim_of(), CancelToken.never())

    assert isinstance(outcome, Retry)
    assert outcome.delay == timedelta(seconds=99)
    assert processor.limit(claim_of().job) == timedelta(seconds=30)


def test_a_worker_may_execute_in_a_coroutine() -> None:
    outcome = run(AsyncWorker())

    assert isinstance(outcome, Success)
    assert outcome.result == ["f", 1]


def test_a_jobs_own_limit_wins_and_the_servers_is_the_last_resort() -> None:
    own = claim_of(timeout=timedelta(seconds=5)).job

    assert processor_of(Slow()).limit(own) == timedelta(seconds=5)
    assert processor_of(None).limit(claim_of().job) == timedelta(minutes=5)


def test_a_jobs_own_max_retries_wins_over_the_policy() -> None:
    assert isinstance(run(raising(OSError()), claim_of(failures=2, max_retries=3)), Retry)
    assert isinstance(run(raising(OSError()), claim_of(failures=1, max_retries=1)), Failure)


def test_the_verdict_of_a_kill_is_that_of_a_timeout() -> None:
    processor = processor_of(Slow())

    first, last = (processor.timeout_verdict(claim_of(failures=n)) for n in (0, 1))

    assert isinstance(first, Retry)
    assert (first.kind, first.delay) == (AttemptKind.TIMEOUT, timedelta(seconds=99))
    assert first.error == ErrorInfo(type="JobTimeout", message="The attempt exceeded its time limit of 30s.")
    assert isinstance(last, Failure)
    assert last.kind is AttemptKind.TIMEOUT
