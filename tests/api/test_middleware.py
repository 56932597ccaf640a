"""Tests: the order of middleware, and what tracing says."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import Processing
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.cancel import CancelToken
from qml_mp.processing.context import WorkerContext, WorkerResult
from qml_mp.processing.middleware import CallNext, TracingMiddleware, chain

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)
JOB = replace(
    Job.new("resize", {"password": "hunter2"}, now=NOW),
    state=Processing(started_at=NOW, worker_id="w-1", server_name="s#1"),
)
CONTEXT = WorkerContext.of(JOB, started_at=NOW, cancel=CancelToken.never())


class SteppingClock:
    """Every look at it is a step after the one before."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.step_s = 1.5

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.monotonic())

    def monotonic(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_the_first_registered_is_the_outermost() -> None:
    seen: list[str] = []

    def layer(name: str) -> object:
        def middleware(job: Job, context: WorkerContext, call_next: CallNext) -> object:
            seen.append(f"{name} in")
            result = call_next(job, context)
            seen.append(f"{name} out")
            return f"{name}({result})"

        return middleware

    result = chain([layer("a"), layer("b")], lambda *_: "x")(JOB, CONTEXT)  # type: ignore[list-item]

    assert result == "a(b(x))"
    assert seen == ["a in", "b in", "b out", "a out"]


def test_without_middleware_the_worker_is_called_as_it_is() -> None:
    assert chain([], lambda job, _: job.method)(JOB, CONTEXT) == "resize"


def test_tracing_logs_one_record_at_the_start_and_one_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    tracing = TracingMiddleware(clock=SteppingClock())

    with caplog.at_level(logging.INFO):
        result = tracing(JOB, CONTEXT, lambda *_: {"secret": 1})

    start, end = caplog.records
    assert result == {"secret": 1}
    for record in (start, end):
        fields = vars(record)
        assert (fields["job_id"], fields["worker_id"], fields["attempt"], fields["method"]) == (
            JOB.id,
            "w-1",
            1,
            "resize",
        )
    assert "duration_s" not in vars(start)
    assert (vars(end)["duration_s"], vars(end)["outcome"]) == (1.5, "succeeded")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("hunter2"), "raised ValueError"),
        (JobInterrupted("stop"), "interrupted"),
        (JobTimeout("late"), "passed its time limit"),
    ],
)
def test_tracing_lets_errors_pass_and_names_them(
    caplog: pytest.LogCaptureFixture, error: BaseException, outcome: str
) -> None:
    def fail(job: Job, context: WorkerContext) -> object:
        raise error

    with caplog.at_level(logging.DEBUG), pytest.raises(type(error)):
        TracingMiddleware(clock=SteppingClock())(JOB, CONTEXT, fail)

    assert vars(caplog.records[-1])["outcome"] == outcome
    assert caplog.records[-1].levelno == logging.DEBUG  # the line about it comes when it is stored


@pytest.mark.parametrize(
    ("result", "outcome"), [(WorkerResult.retry("busy"), "retry"), (WorkerResult.failure("no"), "failed")]
)
def test_tracing_tells_a_result_that_is_no_success(
    caplog: pytest.LogCaptureFixture, result: WorkerResult, outcome: str
) -> None:
    with caplog.at_level(logging.DEBUG):
        TracingMiddleware(clock=SteppingClock())(JOB, CONTEXT, lambda *_: result)

    assert vars(caplog.records[-1])["outcome"] == outcome


def test_tracing_logs_neither_payload_nor_result_nor_error_text(caplog: pytest.LogCaptureFixture) -> None:
    def fail(job: Job, context: WorkerContext) -> object:
        raise ValueError("hunter2")

    with caplog.at_level(logging.DEBUG), pytest.raises(ValueError, match="hunter2"):
        TracingMiddleware()(JOB, CONTEXT, fail)

    assert all("hunter2" not in str(vars(record)) for record in caplog.records)


def test_the_context_tells_the_attempt_by_failures_and_crashes() -> None:
    assert CONTEXT.attempt == 1
    assert CONTEXT.previous_exception is None
