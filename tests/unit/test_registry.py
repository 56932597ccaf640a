"""Tests: workers by method name, and functions as workers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from qml_mp.core.job import Job
from qml_mp.core.payload import JsonValue
from qml_mp.errors import ConfigurationError
from qml_mp.processing.cancel import CancelToken
from qml_mp.processing.context import WorkerContext
from qml_mp.processing.coroutines import run_coroutine
from qml_mp.processing.registry import FunctionWorker, Worker, WorkerRegistry


class Echo(Worker):
    method_name = "echo"

    def execute(self, job: Job, context: WorkerContext) -> JsonValue:
        return [job.payload, context.attempt]


def context_of(job: Job) -> WorkerContext:
    return WorkerContext.of(job, started_at=datetime(2025, 3, 1, tzinfo=UTC), cancel=CancelToken.never())


def test_a_worker_is_found_by_its_method() -> None:
    worker = Echo()

    registry = WorkerRegistry().register(worker).register(FunctionWorker(len, method_name="len"))

    assert registry.get("echo") is worker
    assert registry.methods() == ("echo", "len")


@pytest.mark.fault(30)
@pytest.mark.parametrize("method", ["os.system", "__class__", "Echo", "", "echo "])
def test_a_name_that_nobody_registered_finds_nothing(method: str) -> None:
    assert WorkerRegistry().register(Echo()).get(method) is None


def test_a_second_worker_of_a_method_is_refused() -> None:
    registry = WorkerRegistry().register(Echo())

    with pytest.raises(ConfigurationError, match="'echo' is registered twice"):
        registry.register(Echo())


@pytest.mark.parametrize("method", ["", "x" * 201, "a\0b"])
def test_a_method_name_that_no_job_can_have_is_refused(method: str) -> None:
    with pytest.raises(ConfigurationError, match="method name"):
        WorkerRegistry().register(FunctionWorker(len, method_name=method))


def test_what_is_no_worker_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is no Worker"):
        WorkerRegistry().register(len)  # type: ignore[arg-type]  # what is tested


def test_an_async_function_runs_in_an_event_loop_of_its_own() -> None:
    loops = []

    async def which(x: int) -> int:
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return x

    worker = FunctionWorker(which, method_name="which")
    jobs = [Job.new("which", {"x": n}) for n in (1, 2)]

    assert [run_coroutine(worker.execute(job, context_of(job))) for job in jobs] == [1, 2]
    assert loops[0] is not loops[1]
    assert all(loop.is_closed() for loop in loops)
