"""Tests: threads in which coroutines have the storage asked."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
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


def test_calls_under_way_share_a_few_threads_and_come_by_their_results() -> None:
    threads, seen = LoopThreads(NAME), set[int]()

    def ask(number: int) -> int:
        seen.add(threads_left())
        return number

    async def main() -> list[int]:
        return await asyncio.gather(*(threads.call(partial(ask, number)) for number in range(500)))

    assert asyncio.run(main()) == list(range(500))
    assert max(seen) <= 32
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


def test_what_goes_on_for_a_cancelled_coroutine_takes_no_thread_of_the_loops_own_pool() -> None:
    threads, has_begun, may_end = LoopThreads(NAME), threading.Event(), threading.Event()

    def ask() -> bool:
        has_begun.set()
        return may_end.wait(PATIENCE_S)

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        await cancelled_once_begun(threads.call(ask), has_begun)
        await asyncio.to_thread(lambda: None)
        went_on_meanwhile = threads_left() == 1
        may_end.set()
        return went_on_meanwhile

    assert asyncio.run(main())
    wait_until(lambda: not threads_left(), what="the end of the threads")


def test_what_goes_on_for_a_cancelled_coroutine_may_end_when_its_loop_is_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    threads, has_begun, may_end = LoopThreads(NAME), threading.Event(), threading.Event()

    def ask() -> bool:
        has_begun.set()
        return may_end.wait(PATIENCE_S)

    async def main() -> None:
        await cancelled_once_begun(threads.call(ask), has_begun)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()  # unlike `asyncio.run`, without a word to what is open
    may_end.set()
    wait_until(lambda: not threads_left(), what="the end of the threads")
    gc.collect()

    assert not caplog.records


def test_a_loop_goes_on_once_what_was_cancelled_is_over() -> None:
    threads, has_begun, may_end = LoopThreads(NAME), threading.Event(), threading.Event()

    def ask() -> None:
        has_begun.set()
        may_end.wait(PATIENCE_S)
        raise ValueError("whose caller is gone")

    async def main() -> int:
        await cancelled_once_begun(threads.call(ask), has_begun)
        may_end.set()
        while threads_left():
            await asyncio.sleep(0.001)
        return await threads.call(lambda: 7)

    assert asyncio.run(main()) == 7


def test_loops_that_ask_within_each_others_calls_do_not_wait_for_threads() -> None:
    threads = LoopThreads(NAME)

    def ask(depth: int) -> int:
        return 0 if depth == 0 else 1 + asyncio.run(inner(depth - 1))

    async def inner(depth: int) -> int:
        return await threads.call(lambda: ask(depth))

    assert asyncio.run(inner(40)) == 40
    wait_until(lambda: not threads_left(), what="the end of the threads")
