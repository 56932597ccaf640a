"""Tests: coroutine jobs in their event loop, and interruptions that strike a part of one."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from qml_mp.core.outcome import AttemptKind, Retry
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.cancel import CancelReason
from qml_mp.processing.coroutines import run_coroutine
from tests.unit.processor_case import cancelled, run
from tests.until import PATIENCE_S


def test_tasks_left_behind_by_an_async_job_are_cancelled() -> None:
    cancelled = []

    async def lingers() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("yes")
            raise

    async def job() -> str:
        task = asyncio.create_task(lingers())
        await asyncio.sleep(0)
        return "done" if not task.done() else "?"

    assert run_coroutine(job()) == "done"
    assert cancelled == ["yes"]


def test_an_interruption_that_strikes_a_callback_ends_the_whole_job() -> None:
    def strike() -> None:
        raise JobInterrupted("now")

    async def job() -> None:
        asyncio.get_running_loop().call_soon(strike)
        await asyncio.Event().wait()

    with pytest.raises(JobInterrupted, match="now"):
        run_coroutine(job())


def test_an_interruption_that_strikes_a_task_which_is_kept_and_not_awaited_ends_the_whole_job() -> None:
    kept = []

    async def strike() -> None:
        raise JobInterrupted("now")

    async def job() -> None:
        kept.append(asyncio.create_task(strike()))
        await asyncio.sleep(PATIENCE_S)

    with pytest.raises(JobInterrupted, match="now"):
        run_coroutine(job())


@pytest.mark.parametrize("way", ["await", "gather", "wait", "group"])
def test_one_that_strikes_a_task_which_is_awaited_reaches_who_awaits_it_and_nobody_else(way: str) -> None:
    async def strike() -> None:
        raise JobInterrupted("now")

    async def job() -> str:
        try:
            if way == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(strike())
            elif way == "wait":
                [done], _ = await asyncio.wait([asyncio.create_task(strike())])
                done.result()
            else:
                task = asyncio.create_task(strike())
                await (asyncio.gather(task) if way == "gather" else task)
        except (JobInterrupted, BaseExceptionGroup):
            await asyncio.sleep(0.2)  # what is left to clean up
            return "cleaned up"
        return "?"

    assert run_coroutine(job()) == "cleaned up"


def test_of_a_job_whose_clean_up_fails_after_an_interruption_elsewhere_it_is_known_why_it_ended() -> None:
    kept = []

    async def strike() -> None:
        raise JobTimeout("now")

    async def job() -> None:
        kept.append(asyncio.create_task(strike()))
        try:
            await asyncio.wait_for(asyncio.sleep(PATIENCE_S), PATIENCE_S)
        finally:
            raise OSError("connection is closed")

    outcome = run(job, cancel=cancelled(CancelReason.TIMEOUT))

    assert isinstance(outcome, Retry)
    assert (outcome.kind, outcome.error.type) == (AttemptKind.TIMEOUT, "JobTimeout")
    assert "While it ended it raised OSError: connection is closed" in outcome.error.message


def test_an_error_of_a_job_that_has_swallowed_such_an_interruption_is_its_own() -> None:
    kept = []

    async def strike() -> None:
        raise JobTimeout("now")

    async def job() -> None:
        kept.append(asyncio.create_task(strike()))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE_S)
        await asyncio.wait_for(asyncio.Event().wait(), 0)

    outcome = run(job, cancel=cancelled(CancelReason.TIMEOUT))

    assert isinstance(outcome, Retry)
    assert (outcome.kind, outcome.error.type) == (AttemptKind.FAILURE, "TimeoutError")


def test_a_coroutine_that_cancels_itself_is_cancelled_and_not_interrupted() -> None:
    async def job() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        run_coroutine(job())
