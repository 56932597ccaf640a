"""Tests: the program of a notebook, sent by value, is whole on the other side."""

from __future__ import annotations

import threading
from pathlib import Path
from types import FunctionType

import pytest

from qml_mp import ConfigurationError, QmlApp, WorkerContext
from qml_mp.embedding.by_value import by_value
from qml_mp.processing.program import Program
from qml_mp.processing.registry import FunctionWorker


def function_of(program: Program, method: str) -> FunctionType:
    worker = program.registry.get(method)
    assert isinstance(worker, FunctionWorker)
    assert isinstance(worker.function, FunctionType)
    return worker.function


@pytest.fixture
def app(tmp_path: Path) -> QmlApp:
    return QmlApp(f"sqlite:///{tmp_path}/jobs.db")


def test_an_app_in_use_goes_along_without_its_connection_and_stays_one_app(app: QmlApp) -> None:
    @app.job()
    def double(n: int) -> int:
        return 2 * n

    @app.job()
    def lead(ctx: WorkerContext, n: int) -> tuple[object, object]:
        return app, double

    handle = double.enqueue(1)
    assert handle.result is None  # it is connected, and somebody has looked

    program = by_value(app.program).load()

    assert program.registry.methods() == ("double", "lead")
    assert function_of(program, "double")(4) == 8
    sent_app, sent_double = function_of(program, "lead")(None, 0)
    assert sent_app is not app
    assert sent_app.registry is program.registry
    sent_app.attach(app.storage.url)  # what a worker does
    assert sent_double.enqueue(2).job().payload == {"n": 2}
    assert [job.payload for job in app.enqueued(double)] == [{"n": 1}, {"n": 2}]
    sent_app.close()
    app.close()


def test_what_cannot_be_sent_is_said_of_the_function_that_takes_it_along(app: QmlApp) -> None:
    lock = threading.Lock()

    @app.job()
    def innocent() -> None:
        app.enqueue("guarded")

    @app.job()
    def guarded() -> None:
        with lock:
            pass

    with pytest.raises(ConfigurationError, match=r"The job function 'guarded' cannot be sent.*lock"):
        by_value(app.program)
