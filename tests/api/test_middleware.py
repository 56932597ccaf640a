"""Middleware around jobs: its order, what it may do to a result, and what the tracing of every app logs."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from qml_mp import Job, JobFailed, QmlApp, TracingMiddleware, WorkerContext, WorkerResult
from qml_mp.processing.middleware import CallNext


def app_of(*middleware: Any) -> QmlApp:
    return QmlApp("memory://", middleware=list(middleware))


def test_the_first_registered_is_the_outermost_and_each_may_replace_the_result() -> None:
    seen: list[str] = []

    def layer(name: str) -> object:
        def middleware(job: Job, context: WorkerContext, call_next: CallNext) -> object:
            seen.append(f"{name} in")
            result = call_next(job, context)
            seen.append(f"{name} out")
            return f"{name}({result})"

        return middleware

    app = app_of(layer("a"), layer("b"))

    @app.job()
    def work() -> str:
        return "x"

    with app.inline():
        assert work.enqueue().wait(0) == "a(b(x))"
    assert seen == ["a in", "b in", "b out", "a out"]


@pytest.mark.fault(62)
@pytest.mark.parametrize("when", ["before", "after"])
def test_middleware_that_raises_fails_the_attempt_and_not_the_worker(when: str) -> None:
    def broken(job: Job, context: WorkerContext, call_next: CallNext) -> object:
        if when == "after":
            call_next(job, context)
        raise LookupError("middleware")

    app = app_of(broken)

    @app.job()
    def work() -> None: ...

    with app.inline(), pytest.raises(JobFailed, match="LookupError"):
        work.using(max_retries=0).enqueue().wait(0)


@pytest.mark.parametrize(
    ("result", "outcome"),
    [
        ({"secret": 1}, "succeeded"),
        (ValueError("hunter2"), "raised ValueError"),
        (WorkerResult.failure("hunter2"), "failed"),
        (WorkerResult.retry("hunter2"), "retry"),
    ],
    ids=["a result", "an error", "a failure", "a retry"],
)
def test_tracing_logs_the_begin_and_the_end_of_an_attempt_and_no_payload_result_or_error_text(
    caplog: pytest.LogCaptureFixture, result: object, outcome: str
) -> None:
    app = app_of(TracingMiddleware())

    @app.job()
    def resize(password: str) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    with app.inline(), caplog.at_level(logging.DEBUG, "qml_mp"):
        handle = resize.using(max_retries=0).enqueue("hunter2")

    start, end = (record for record in caplog.records if "middleware" in record.name)
    for record in (start, end):
        fields = vars(record)
        assert (fields["job_id"], fields["attempt"], fields["method"]) == (handle.id, 1, "resize")
        assert "hunter2" not in str(fields)
    assert "duration_s" not in vars(start)
    assert (vars(end)["duration_s"] >= 0, vars(end)["outcome"]) == (True, outcome)
