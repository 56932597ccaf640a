"""Client: threads in which coroutines have the storage asked.

Not those of the event loop's own pool: the program may keep all of them busy for as long as it likes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar

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
        begun goes on, and `asyncio.run` ends after it."""
        import asyncio
        from concurrent.futures import wait

        begun = self._begin(call)
        try:
            return await asyncio.wrap_future(begun)
        except asyncio.CancelledError:
            if not begun.done():
                with suppress(RuntimeError):  # the loop's pool, which `asyncio.run` waits for, is shut down
                    asyncio.get_running_loop().run_in_executor(None, wait, [begun])
            raise

    async def to_the_end(self, call: Callable[[], _T]) -> _T:
        """A coroutine that is cancelled meanwhile leaves when the call is over."""
        import asyncio

        thread = asyncio.wrap_future(self._begin(call))
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

    def _begin(self, call: Callable[[], _T]) -> Future[_T]:
        import asyncio

        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None or not pool.enter():
            pool = self._pools[loop] = _Pool(self._name)
        try:
            begun = pool.executor.submit(copy_context().run, call)
        except BaseException:  # there are too many threads; or it was a Ctrl-C
            self._leave(loop, pool)
            raise
        begun.add_done_callback(lambda _: self._leave(loop, pool))
        return begun

    def _leave(self, loop: AbstractEventLoop, pool: _Pool) -> None:
        if pool.leave() and self._pools.get(loop) is pool:
            del self._pools[loop]


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
