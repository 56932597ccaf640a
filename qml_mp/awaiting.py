"""Client: the ends of jobs for coroutines, and for threads beside the first one that waits. One thread of the
process waits for all of them together, over one connection.

It runs while anybody waits, and ends with the last one. Neither an event loop nor its pool of threads,
which a few long waits would use up, is held up by it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from qml_mp.core.job import Job
from qml_mp.storage.connection import fork_guard
from qml_mp.watch import Watch

if TYPE_CHECKING:
    import asyncio

_Ended = dict[str, Job | None]
_Bell = tuple[int, int]

_LOOK_FOR_GONE_S = 1.0
"""How often it is looked whether somebody is gone without having left."""


class Subscription(ABC):
    """The ends of some jobs, for one who waits."""

    def __init__(self, job_ids: Iterable[str]) -> None:
        self.job_ids = set(job_ids)
        """Of those that have not ended; read and written by the thread alone, once it has it."""
        self._is_new = True
        """Whether its first look goes on; likewise."""

    def take(self, ended: _Ended, *, is_all: bool) -> None:
        """Runs in the thread: its own of these; and once that there are none, when its first look is over."""
        its = {job_id: ended[job_id] for job_id in self.job_ids & ended.keys()}
        self.job_ids -= its.keys()
        if its:
            self.tell(its)
        if is_all and self._is_new:
            self._is_new = False
            self.tell({})

    @property
    def is_gone(self) -> bool:
        """Whether nobody can be told any more."""
        return False

    @abstractmethod
    def tell(self, told: _Ended | Exception) -> None:
        """Runs in the thread: hand it over."""


class OfCoroutine(Subscription):
    """`async with awaiting.subscribe(ids) as subscription`."""

    def __init__(self, awaiting: Awaiting, job_ids: Iterable[str]) -> None:
        import asyncio  # not before there is a coroutine

        super().__init__(job_ids)
        self._awaiting = awaiting
        self._loop = asyncio.get_running_loop()
        self._told: asyncio.Queue[_Ended | Exception] = asyncio.Queue()
        self._has_looked = False

    async def __aenter__(self) -> OfCoroutine:
        self._awaiting.join(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._awaiting.leave(self)

    async def next_ended(self, *, deadline: float) -> _Ended:
        """As `Watch.next_ended`."""
        import asyncio

        while True:
            # The first look is waited for in any case.
            limit_s = _left_s(deadline) if self._has_looked else None
            try:
                async with asyncio.timeout(limit_s):
                    told = await self._told.get()
            except TimeoutError:
                return {}
            if isinstance(told, Exception):
                raise told
            if told:
                return told
            self._has_looked = True

    @property
    def is_gone(self) -> bool:
        """The loop was closed under the coroutine, which never goes on, and may never be collected."""
        return self._loop.is_closed()

    def tell(self, told: _Ended | Exception) -> None:
        with suppress(RuntimeError):  # it is gone
            self._loop.call_soon_threadsafe(self._told.put_nowait, told)


class OfThread(Subscription):
    """For one thread of several that wait."""

    def __init__(self, awaiting: Awaiting, job_ids: Iterable[str]) -> None:
        super().__init__(job_ids)
        self._awaiting = awaiting
        self._told: SimpleQueue[_Ended | Exception] = SimpleQueue()
        awaiting.join(self)

    def next_ended(self, *, deadline: float) -> _Ended:
        """As `Watch.next_ended`, after a first look."""
        while True:
            try:
                told = self._told.get(timeout=_left_s(deadline))
            except Empty:
                return {}
            if isinstance(told, Exception):
                raise told
            if told:
                return told

    def tell(self, told: _Ended | Exception) -> None:
        self._told.put(told)

    def close(self) -> None:
        """Harmless when closed already."""
        self._awaiting.leave(self)


class Awaiting:
    """The thread, and whom it tells."""

    def __init__(self, new_watch: Callable[..., Watch]) -> None:
        self._new_watch = new_watch
        self.begin_in_child()
        fork_guard().watch_other(self)

    def subscribe(self, job_ids: Iterable[str]) -> OfCoroutine:
        """For the coroutine that calls this."""
        return OfCoroutine(self, job_ids)

    def join(self, subscription: Subscription) -> None:
        """Begin to tell it."""
        if self._pid != os.getpid():
            self.begin_in_child()  # forked in C, where nobody is told of it
        with self._lock:
            if self._bell is None:
                self._start()
            self._joining.append(subscription)
            self._ring()

    def leave(self, subscription: Subscription) -> None:
        """Tell it no more."""
        if self._pid == os.getpid():
            with self._lock:
                self._leaving.append(subscription)
                self._ring()

    def begin_in_child(self) -> None:
        """The thread, and who waited for it, are the parent's."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        """Of what follows. A coroutine whose loop was closed leaves when it is collected: in any thread, and
        in the midst of anything."""
        self._bell: _Bell | None = None
        """Of the thread that runs. Another one, whose start was interrupted, knows by it that it is not this
        thread."""
        self._joining: list[Subscription] = []
        self._leaving: list[Subscription] = []

    def _start(self) -> None:
        bell = self._bell = os.pipe()
        for fd in bell:
            os.set_blocking(fd, False)
        try:
            threading.Thread(
                target=self._run, args=[bell], name="qml-mp: waiting for jobs", daemon=True
            ).start()
        except BaseException:  # there are too many; or it was a Ctrl-C, and the thread may have begun
            self._close()
            raise

    def _ring(self) -> None:
        if self._bell is not None:
            with suppress(BlockingIOError):  # it has been rung often enough
                os.write(self._bell[1], b"!")

    def _run(self, bell: _Bell) -> None:
        told: dict[Subscription, None] = {}
        """In the order in which they came."""
        try:
            with self._new_watch(bell_fd=bell[0]) as watch:
                while True:
                    came = self._take_changes(bell, watch, told)
                    if not told:
                        return
                    is_urgent = came or watch.is_behind
                    ended = watch.next_ended(
                        deadline=0.0 if is_urgent else time.monotonic() + _LOOK_FOR_GONE_S
                    )
                    for each in told:
                        each.take(ended, is_all=not watch.is_behind)
                        if each.is_gone:
                            self.leave(each)
        except Exception as problem:
            self._fail(bell, told, problem)

    def _take_changes(
        self, bell: _Bell, watch: Watch, told: dict[Subscription, None]
    ) -> Collection[Subscription]:
        """Bring `told` up to who has come and who has left since; those who have come. With nobody left the
        thread is over."""
        with self._lock:
            if self._bell is not bell:  # closed before anybody came, and its numbers may be others' by now
                return ()
            came, self._joining = dict.fromkeys(self._joining), []
            left, self._leaving = self._leaving, []
            with suppress(BlockingIOError):  # nobody has rung
                os.read(bell[0], 65536)
            told.update(came)  # an event loop may wait for the lock: no more is done than has changed
            for each in left:
                told.pop(each, None)
            if not told:
                self._close()
                return ()
        gone = {job_id for each in left for job_id in each.job_ids}
        if gone:  # others may wait for the same jobs; of who has seen all of its own there are none
            watch.remove(gone.difference(*(each.job_ids for each in told)))
        if came:
            watch.add({job_id for each in came if each in told for job_id in each.job_ids})
        return came

    def _fail(self, bell: _Bell, told: Iterable[Subscription], problem: Exception) -> None:
        with self._lock:
            if self._bell is not bell:
                return
            for each in [*told, *self._joining]:
                each.tell(problem)
            self._joining, self._leaving = [], []
            self._close()

    def _close(self) -> None:
        bell, self._bell = self._bell, None
        for fd in bell or ():
            os.close(fd)


def _left_s(deadline: float) -> float | None:
    return None if deadline == math.inf else max(0.0, deadline - time.monotonic())
