"""Worker and client: the run of a coroutine job, in an event loop of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar

from qml_mp.errors import JobInterrupted
from qml_mp.processing.interruptions import all_behind

if TYPE_CHECKING:  # imported when there is a coroutine: a quarter of the time of importing `QmlApp`, and 3 MB
    import asyncio

_TAKEN_WITHIN_S = 0.1  # by who awaits a task: what it does first, once its wait is over
_A = TypeVar("_A")
_T = TypeVar("_T")


def run_coroutine(coroutine: Awaitable[Any]) -> Any:
    """Run it, or whatever else can be awaited, to its end in a fresh event loop, which is gone afterwards
    with all tasks left in it.

    An interruption raised in a task that nobody awaits, or in a callback, still ends the whole job: one that
    nobody has taken from its task within a moment, as asyncio itself tells.
    """
    return away_from_loops(_run_here, coroutine)


def _run_here(coroutine: Awaitable[Any]) -> Any:
    import asyncio

    interruptions: list[BaseException] = []

    async def main() -> Any:
        task: Any = asyncio.current_task()  # never None, in a coroutine

        def on_error(loop: asyncio.AbstractEventLoop, details: dict[str, Any]) -> None:
            error = details.get("exception")
            if isinstance(error, JobInterrupted):
                interruptions.append(error)
                task.cancel(error)
            else:
                loop.default_exception_handler(details)

        def end_job(of: asyncio.Task[Any], error: BaseException) -> None:
            if getattr(of, "_log_traceback", False):
                on_error(loop, {"exception": error})  # which asyncio does only once the task is gone

        def on_done(done: asyncio.Task[Any]) -> None:
            error = getattr(done, "_exception", None)  # `exception()` would count as taken
            if isinstance(error, JobInterrupted):
                loop.call_later(_TAKEN_WITHIN_S, end_job, done, error)

        def new_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
            made = asyncio.Task(coroutine, loop=loop, **options)
            made.add_done_callback(on_done)
            return made

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(on_error)
        loop.set_task_factory(new_task)
        return await coroutine

    try:
        # With a factory of its own, the loop that the thread has set, and plain jobs ask for, stays set.
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        with _children_watched_in(runner.get_loop()), runner:
            return runner.run(main())
    except asyncio.CancelledError:
        if interruptions:
            raise interruptions[0] from None
        raise
    except BaseException as error:
        if interruptions:
            _put_behind(error, interruptions)
        raise


@contextmanager
def _children_watched_in(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Within the block, a child watcher that the program has set (until Python 3.14) serves this loop: of
    itself it would only where the loop is set for the thread."""
    watcher = child_watcher()
    if watcher is None:
        yield
        return
    before = getattr(watcher, "_loop", None)
    attach_watcher(watcher, loop)
    try:
        yield
    finally:
        attach_watcher(watcher, None if before is None or before.is_closed() else before)


def child_watcher() -> Any:
    """The one that the program has set; None: none, or this thread may not attach it."""
    asyncio: Any = sys.modules.get("asyncio")
    if sys.version_info < (3, 14) and asyncio and threading.current_thread() is threading.main_thread():
        return getattr(asyncio.get_event_loop_policy(), "_watcher", None)  # to ask for it makes one
    return None


def attach_watcher(watcher: Any, loop: asyncio.AbstractEventLoop | None) -> None:
    """Have it serve this loop, or none."""
    with suppress(RuntimeError):  # of a child that a job has left: nobody is told of its end any more
        watcher.attach_loop(loop)


def _put_behind(error: BaseException, interruptions: list[BaseException]) -> None:
    """The job's clean-up may have raised this in the stead of the cancellation by which an interruption ended
    it: then the interruption is behind it, as behind what other jobs raise."""
    from asyncio import CancelledError

    behind = list(all_behind(error))
    if any(each is interruption for each in behind for interruption in interruptions):
        return
    for each in behind:
        for interruption in interruptions:
            if isinstance(each, CancelledError) and each.args and each.args[0] is interruption:
                each.__context__ = interruption
                return


def away_from_loops(call: Callable[[_A], _T], a: _A) -> _T:
    """What `call(a)` returns, called where no event loop runs: here or, if one does, in another thread, with
    the context variables of this one, and waited for."""
    if not _loop_runs_here():
        return call(a)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(copy_context().run, call, a).result()


def _loop_runs_here() -> bool:
    """Never in a worker; but a job can be run by a test that has a loop of its own."""
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
