"""Tests: what a job returns, as the stored result."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure, Retry, Success
from qml_mp.core.payload import encode_json
from qml_mp.processing.context import WorkerContext, WorkerResult
from qml_mp.processing.middleware import CallNext
from tests.unit.processor_case import (
    NOW,
    TEN_S,
    claim_of,
    error_of,
    keys_of,
    returning,
    run,
)


@dataclass(frozen=True)
class Thumbnail:
    path: Path
    taken: date


def test_a_result_of_dataclasses_and_dates_is_stored_as_json() -> None:
    value = [
        Thumbnail(path=Path("a.png"), taken=date(2025, 3, 1)),
        {1: Decimal("0.1")},
        (timedelta(seconds=2),),
    ]

    outcome = run(returning(value))

    assert isinstance(outcome, Success)
    assert outcome.result == [{"path": "a.png", "taken": "2025-03-01"}, {"1": "0.1"}, [2.0]]
    assert outcome.encoded == encode_json(outcome.result, what="The result")


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


def test_middleware_sees_and_may_replace_the_result() -> None:
    def doubling(job: Job, context: WorkerContext, call_next: CallNext) -> object:
        return [call_next(job, context)] * 2

    outcome = run(returning(1), middleware=(doubling, doubling))

    assert isinstance(outcome, Success)
    assert outcome.result == [[1, 1], [1, 1]]
