"""Tests: one claim in, one outcome out, for everything that a job's code can do and return."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Generator, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest

from qml_mp import QmlApp, StateChange
from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind, ErrorInfo, Failure, Outcome, Retry, Success
from qml_mp.core.payload import JsonValue
from qml_mp.errors import ConfigurationError, JobTimeout
from qml_mp.processing.cancel import CancelToken
from qml_mp.processing.context import WorkerContext, WorkerResult
from qml_mp.processing.middleware import CallNext
from qml_mp.processing.processor import JobProcessor
from qml_mp.processing.registry import Worker
from qml_mp.processing.retry import RetryPolicy
from tests.unit.processor_case import (
    NOW,
    TEN_S,
    claim_of,
    error_of,
    keys_of,
    processor_of,
    raising,
    returning,
    run,
)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_the_context_tells_what_came_before() -> None:
    seen: list[WorkerContext] = []

    def f(ctx: WorkerContext) -> None:
        seen.append(ctx)

    error = ErrorInfo(type="KeyError", message="'a'")
    run(f, claim_of(failures=2, crashes=1, last_error=error))

    assert (seen[0].attempt, seen[0].previous_exception, seen[0].started_at) == (4, error, NOW)


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


@pytest.mark.fault(32)
def test_an_exception_that_cannot_be_printed_is_a_failed_attempt() -> None:
    assert "raised RuntimeError" in error_of(run(raising(Unprintable()))).message


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
    execution = processor.resolve(claim_of())

    outcome = processor.run(execution, CancelToken.never())

    assert isinstance(outcome, Retry)
    assert outcome.delay == timedelta(seconds=99)
    assert execution.terms.limit == timedelta(seconds=30)


def test_a_worker_may_execute_in_a_coroutine() -> None:
    outcome = run(AsyncWorker())

    assert isinstance(outcome, Success)
    assert outcome.result == ["f", 1]


def test_a_jobs_own_limit_wins_and_the_servers_is_the_last_resort() -> None:
    own = claim_of(timeout=timedelta(seconds=5))

    assert processor_of(Slow()).resolve(own).terms.limit == timedelta(seconds=5)
    assert processor_of(None).resolve(claim_of()).terms.limit == timedelta(minutes=5)


class Stubborn(Slow):
    max_retries = 3


class Once(Slow):
    max_retries = 0


def test_a_workers_own_max_retries_holds_for_jobs_that_say_none() -> None:
    stubborn, once = processor_of(Stubborn()), processor_of(Once())

    def ends(processor: JobProcessor, **fields: Any) -> tuple[type[Outcome], int, bool]:
        execution = processor.resolve(claim_of(**fields))
        outcome = processor.run(execution, CancelToken.never())
        killed = execution.terms.when_killed
        assert (killed.timeout is None) == (killed.memory is None)
        return type(outcome), execution.terms.max_attempts, killed.timeout is None

    assert ends(stubborn, failures=2) == (Retry, 4, False)
    assert ends(stubborn, failures=3) == (Failure, 4, True)
    assert ends(stubborn, max_retries=0) == (Failure, 1, True)
    assert ends(once) == (Failure, 1, True)
    assert ends(once, max_retries=1) == (Retry, 2, False)


def test_a_retry_that_the_job_asks_for_is_one_of_those_that_its_worker_allows() -> None:
    class Asks(Once):
        def execute(self, job: Job, context: WorkerContext) -> WorkerResult:  # type: ignore[override]
            return WorkerResult.retry("not yet")

    assert isinstance(run(Asks()), Failure)
    assert isinstance(run(Asks(), claim_of(max_retries=1)), Retry)


@pytest.mark.parametrize(
    ("lists", "timeout", "memory"),
    [
        ({"never_retry": ("JobTimeout",)}, False, True),
        ({"never_retry": ("OutOfMemory",)}, True, False),
        ({"retry_on": ("OutOfMemory",)}, False, True),
        ({"retry_on": (JobTimeout,)}, True, False),
        ({"never_retry": ("JobTimeout", "OutOfMemory")}, False, False),
    ],
)
def test_the_lists_of_the_policy_know_a_time_limit_from_a_memory_limit(
    lists: dict[str, Any], timeout: bool, memory: bool
) -> None:
    processor = processor_of(returning(1), policy=RetryPolicy.fixed(**lists))

    retry = processor.resolve(claim_of()).terms.when_killed

    assert (retry.timeout is not None, retry.memory is not None) == (timeout, memory)


class Later:
    """An awaitable that is no coroutine."""

    def __await__(self) -> Generator[None, None, int]:
        yield from asyncio.sleep(0).__await__()
        return 3


def test_an_awaitable_that_is_returned_is_awaited() -> None:
    outcome = run(returning(Later()))

    assert isinstance(outcome, Success)
    assert outcome.result == 3


def test_what_is_returned_and_has_not_run_is_a_failure() -> None:
    async def values() -> AsyncIterator[int]:
        yield 1

    def forgetful(job: Job, context: WorkerContext, call_next: CallNext) -> object:
        call_next(job, context)
        return Later()

    outcomes = [run(returning(generator)) for generator in ((number for number in (1, 2)), values())]
    outcomes.append(run(returning(1), middleware=(forgetful,)))

    assert all("of which nothing has run" in error_of(outcome).message for outcome in outcomes)


class AsyncLayer:
    async def __call__(self, job: Job, context: WorkerContext, call_next: CallNext) -> object:
        return call_next(job, context)


def test_middleware_and_hooks_that_would_not_run_are_refused() -> None:
    async def layer(job: Job, context: WorkerContext, call_next: CallNext) -> object:
        return call_next(job, context)

    def generator(job: Job, context: WorkerContext, call_next: CallNext) -> Iterator[object]:
        yield call_next(job, context)

    async def hook(change: StateChange) -> None: ...

    for wrong in (layer, generator, AsyncLayer(), partial(AsyncLayer()), "a name"):
        with pytest.raises(ConfigurationError, match=r"middleware\[0\] is .* plain function \(job, context"):
            QmlApp(middleware=[wrong])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match=r"on_state_change is .* plain function"):
        QmlApp(on_state_change=hook)  # type: ignore[arg-type]


def test_what_a_job_changes_of_its_arguments_is_not_what_middleware_calls_it_with_again() -> None:
    payload: JsonValue = {"rows": [{"cells": [1, 2]}], "more": {"a": [3]}}
    given = list[Any]()

    def again(job: Job, context: WorkerContext, call_next: Any) -> object:
        call_next(job, context)
        return call_next(job, context)

    def drain(rows: list[dict[str, Any]], more: Any = None) -> None:
        given.append(copy.deepcopy({"rows": rows, "more": more}))
        rows[0]["cells"].clear()
        more["a"].clear()

    claim = claim_of(payload)
    run(drain, claim, middleware=(again,))

    assert given == [payload, payload]
    assert claim.job.payload == {"rows": [{"cells": [1, 2]}], "more": {"a": [3]}}


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
    claim = claim_of(failures=1)
    with caplog.at_level(logging.WARNING):
        outcome = run(returning(value), claim)

    assert isinstance(outcome, Success)
    assert outcome.result is None
    assert outcome.not_stored
    assert outcome.encoded == "null"
    assert f"cannot be stored and is dropped: {outcome.not_stored}" in caplog.text
    assert set(map(keys_of, caplog.records)) == {(claim.job.id, "f", 2, "w-1")}


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
