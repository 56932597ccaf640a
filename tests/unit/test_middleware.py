"""Tests: the order of middleware, and what tracing says."""

from __future__ import annotations

import logging
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import Processing
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.cancel import CancelToken
from qml_mp.processing.context import WorkerContext, WorkerResult
from qml_mp.processing.middleware import CallNext, TracingMiddleware, chain
from tests.storage.helpers import in_children

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


def test_tracing_tells_no_start_of_a_method_whose_last_execution_was_short(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = SteppingClock()
    tracing = TracingMiddleware(clock=clock)

    def told_of(*, took_s: float) -> list[str]:
        caplog.clear()
        clock.step_s = took_s
        tracing(JOB, CONTEXT, lambda *_: None)
        return [record.getMessage().split(" attempt 1 ")[1].split()[0] for record in caplog.records]

    with caplog.at_level(logging.INFO):
        told = [told_of(took_s=took_s) for took_s in (0.05, 0.05, 0.06, 0.05, 0.05)]

    both, end = ["started", "succeeded"], ["succeeded"]
    assert told == [both, end, end, both, end]


def test_a_record_of_tracing_is_what_the_logger_would_have_made(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("qml_mp.processing.middleware")
    tracing = TracingMiddleware()

    with caplog.at_level(logging.INFO):
        tracing(replace(JOB, method="other"), CONTEXT, lambda *_: None)
        tracing(JOB, CONTEXT, lambda *_: logger.info("in between", extra={"job_id": JOB.id}))

    *_, start, between, end = caplog.records
    own = {"worker_id", "attempt", "method"}
    assert vars(start).keys() == vars(between).keys() | own
    assert vars(end).keys() == vars(between).keys() | own | {"duration_s", "outcome"}
    alike = ("name", "levelno", "levelname", "process", "processName", "thread", "threadName", "job_id")
    assert [vars(start)[name] for name in alike] == [vars(between)[name] for name in alike]
    assert start.created <= between.created <= end.created
    assert start.relativeCreated <= between.relativeCreated <= end.relativeCreated
    assert start.msecs == int(start.created % 1 * 1000)
    assert start.getMessage() == f"job {JOB.id} (resize) attempt 1 started"


def test_a_record_of_tracing_names_the_process_and_the_thread_that_made_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracing = TracingMiddleware()

    def told() -> tuple[int | None, str | None, int | None]:
        tracing(JOB, CONTEXT, lambda *_: None)
        record = caplog.records[-1]
        return record.process, record.threadName, record.thread

    def in_a_child() -> None:
        assert told()[0] == os.getpid()

    with caplog.at_level(logging.INFO):
        here = told()
        [status] = in_children([in_a_child])
        with ThreadPoolExecutor(1, "pool") as pool:
            in_a_thread = pool.submit(told).result()

    assert here == (os.getpid(), "MainThread", threading.get_ident())
    assert in_a_thread[:2] == (os.getpid(), "pool_0")
    assert in_a_thread[2] != here[2]
    assert status == 0
    pickle.dumps(tracing)  # as with the program of a notebook, whose host has run jobs inline


def test_the_records_of_tracing_are_made_by_the_factory_that_a_program_has_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        vars(record)["tenant"] = "a"
        return record

    usual = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        with caplog.at_level(logging.INFO):
            TracingMiddleware()(JOB, CONTEXT, lambda *_: None)
    finally:
        logging.setLogRecordFactory(usual)

    assert [(vars(record)["tenant"], vars(record)["job_id"]) for record in caplog.records] == [
        ("a", JOB.id),
        ("a", JOB.id),
    ]


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
