"""Client: threads in which coroutines have the storage asked.

Not those of the event loop's own pool: the program may keep all of them busy for as long as it likes.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from qml_mp.storage.waiting import PlaceInLine, place_in_line

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from concurrent.futures import Future

_T = TypeVar("_T")


class LoopThreads:
    """A few for each event loop, which share them while calls are under way and end with the last one: a job
    that enqueues leaves none in its worker. No loop waits for the calls of another, which may be within one
    of its own: `inline` runs jobs there."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pools: dict[AbstractEventLoop, _Pool] = {}
        """Of the loops for which calls are under way. A loop begins them, and a thread ends the last one."""

    async def call(self, call: Callable[[], _T]) -> _T:
        """As `asyncio.to_thread`: within the context of the coroutine; and of one that is cancelled, what has
        begun goes on, and `asyncio.run` ends after it. What waits for a thread, or in one for the storage
        behind others, has not begun, and nothing of it is done."""
        import asyncio

        place = PlaceInLine()
        thread = self._begin(call, place)
        try:
            return await asyncio.wrap_future(thread)
        except asyncio.CancelledError:  # which takes it back from the pool, too
            place.give_up()
            if not thread.done():
                await _have_loop_end_after(thread)
            raise

    async def to_the_end(self, call: Callable[[], _T]) -> _T:
        """A coroutine that is cancelled meanwhile leaves when the call is over."""
        import asyncio

        thread = asyncio.wrap_future(self._begin(call, None))
        cancelled: asyncio.CancelledError | None = None
        while not thread.done():
            try:
                await asyncio.wait([thread])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is None:
            return thread.result()
        thread.exception()  # else asyncio would log that nobody has asked for it
        raise cancelled

    def _begin(self, call: Callable[[], _T], place: PlaceInLine | None) -> Future[_T]:
        import asyncio

        loop = asyncio.get_running_loop()
        context = copy_context()
        context.run(place_in_line.set, place)
        pool = self._pools.get(loop)
        if pool is None or not pool.enter():
            pool = self._pools[loop] = _Pool(self._name)
        try:
            begun = pool.executor.submit(context.run, call)
        except BaseException:  # there are too many threads; or it was a Ctrl-C
            self._leave(loop, pool)
            raise
        begun.add_done_callback(lambda _: self._leave(loop, pool))
        return begun

    def _leave(self, loop: AbstractEventLoop, pool: _Pool) -> None:
        if pool.leave() and self._pools.get(loop) is pool:
            del self._pools[loop]


async def _have_loop_end_after(thread: Future[Any]) -> None:
    """Of all that `asyncio.run` waits for, an async generator alone takes no thread of the loop's own pool:
    it is ended with its loop, and may await something then."""
    import asyncio

    loop, is_over = asyncio.get_running_loop(), asyncio.Event()

    async def waits_when_ended() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await is_over.wait()

    waiting = waits_when_ended()
    await anext(waiting)

    def end() -> None:
        is_over.set()
        with suppress(StopIteration, RuntimeError):  # the latter: `asyncio.run` is ending it
            waiting.aclose().send(None)

    def tell(_: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(end)

    thread.add_done_callback(tell)


class _Pool:
    """Made with the first call under way."""

    def __init__(self, name: str) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.executor = ThreadPoolExecutor(thread_name_prefix=name)
        self._lock = threading.Lock()
        """Of the number."""
        self._under_way = 1

    def enter(self) -> bool:
        """False: the last call was over, and the threads end."""
        with self._lock:
            self._under_way += self._under_way > 0
            return self._under_way > 0

    def leave(self) -> bool:
        """Whether that was the last call."""
        with self._lock:
            self._under_way -= 1
            is_last = self._under_way == 0
        if is_last:
            self.executor.shutdown(wait=False)
        return is_last
