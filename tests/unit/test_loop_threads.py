"""Tests: threads in which coroutines have the storage asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from qml_mp import QmlApp, WaitTimeout
from qml_mp.loop_threads import LoopThreads
from tests.unit.app_case import count, resize
from tests.until import PATIENCE_S, wait_until

NAME = "qml-mp: of a test"
asked_by: ContextVar[str] = ContextVar("asked_by")


@contextmanager
def busy_pool() -> Iterator[Callable[[], bool]]:
    """All threads of the loop's own pool are busy within the block; whether they are."""
    loop, may_end = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, may_end.wait, PATIENCE_S)
    try:
        yield lambda: not busy.done()
    finally:
        may_end.set()


async def cancelled_once_begun(call: Coroutine[Any, Any, object], has_begun: threading.Event) -> None:
    calling = asyncio.create_task(call)
    while not has_begun.is_set():
        await asyncio.sleep(0.001)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


def threads_left() -> int:
    return sum(thread.name.startswith(NAME) for thread in threading.enumerate())


def test_coroutines_enqueue_and_wait_though_all_threads_of_their_loop_are_busy(app: QmlApp) -> None:
    function = app.job()(resize)

    async def main() -> bool:
        with busy_pool() as is_busy:
            handle = await function.aenqueue("a.png")
            await function.aenqueue_many([function.job("b.png")])
            with pytest.raises(WaitTimeout, match="still enqueued"):
                await handle.await_result(0)
            return is_busy()

    assert asyncio.run(main())
    assert count(app) == 2


def test_what_is_called_has_the_context_of_the_coroutine_and_no_thread_is_left() -> None:
    threads = LoopThreads(NAME)

    async def ask(who: str) -> tuple[str, str]:
        asked_by.set(who)
        return await threads.call(asked_by.get), await threads.to_the_end(asked_by.get)

    async def main() -> list[tuple[str, str]]:
        return await asyncio.gather(*(ask(who) for who in "abc"))

    assert asyncio.run(main()) == [(who, who) for who in "abc"]
    wait_until(lambda: not threads_left(), what="the end of the threads")


def test_what_has_begun_is_over_when_asyncio_run_returns_though_its_coroutine_was_cancelled() -> None:
    threads, has_begun, may_end, ends = LoopThreads(NAME), threading.Event(), threading.Event(), list[str]()

    def write() -> None:
        has_begun.set()
        may_end.wait(PATIENCE_S)
        ends.append("written")

    async def main() -> None:
        await cancelled_once_begun(threads.call(write), has_begun)
        ends.append("cancelled")
        asyncio.get_running_loop().call_soon(may_end.set)

    asyncio.run(main())

    assert ends == ["cancelled", "written"]
    wait_until(lambda: not threads_left(), what="the end of the threads")
