"""Client and worker: a named lock in the storage, held by one process of all that share it."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from types import TracebackType

from qml_mp import host
from qml_mp.clock import growing_pauses
from qml_mp.core.payload import check_text
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.errors import ConfigurationError, InvalidJob, LockLost, LockNotAcquired, StorageError, shown
from qml_mp.loop_threads import LoopThreads
from qml_mp.storage.store import Storage
from qml_mp.units import Duration, format_duration, parse_duration

_MAX_NAME_CHARS = 200
_RESERVED = "qml-mp:"
_SHORTEST_TTL = timedelta(milliseconds=100)
_MOST_LEFT = 1000
_BETWEEN = "|"  # the parts of an owner

logger = logging.getLogger(__name__)


class LeftOwners:
    """Owners that may be stored still, though their acquisitions are over: the storage did not answer.

    No owner is used twice, so whoever finds one of these may release it, a process that was forked off too.
    The oldest are forgotten. Threads share it: each use is one operation of a deque.
    """

    def __init__(self) -> None:
        self._owners: deque[str] = deque(maxlen=_MOST_LEFT)

    def add(self, owner: str) -> None:
        self._owners.append(owner)

    def __contains__(self, owner: str) -> bool:
        return owner in self._owners


class NamedLock:
    """`with` it, or `async with` it. Made by `QmlApp.lock`.

    It is held until the block ends, but no longer than `ttl` after it was acquired or renewed: nobody renews
    it by itself, so take a ttl that is longer than the work, or call `renew` on the way. When the process
    that holds it dies, whoever waits on the same machine gets it at once, and others when the ttl is over.
    One whose ttl has passed was lost, also when nobody else has taken it: `is_held` says so, and `renew` and
    the end of the block raise `LockLost`. A process that was forked off within the block does not hold it.

    Threads and coroutines may share the object, as they do a `threading.Lock`: one has it at a time, and the
    others wait until it is released, also when its ttl is over. Not reentrant: to acquire it again, in the
    same thread or task, would be to wait for oneself, and raises `ConfigurationError`.
    """

    def __init__(
        self,
        name: str,
        *,
        storage: Callable[[], Storage],
        left: LeftOwners,
        ttl: Duration,
        timeout: Duration | None,
    ) -> None:
        """`timeout`: how long to wait for it, zero: not at all, None: without a limit. `left`: of all locks
        of the app, as the next use of a lock mostly is of another object."""
        _check_name(name)
        self.name = name
        self.token = 0
        """Grows with each acquisition of any lock. Hand it to what you write to, and refuse lower ones there:
        it fences out a holder that was stopped for longer than its ttl."""
        self._storage = storage
        self._ttl = _checked_ttl(ttl)
        self._timeout = None if timeout is None else parse_duration(timeout, what="timeout")
        self._acquisitions: dict[int, _Acquisition] = {}
        """The one that is made or in hand, by process id: a process that is forked off meanwhile has none.
        Whoever put it there (`setdefault` is atomic) has the object to himself until he takes it out."""
        self._left = left
        self._threads = LoopThreads("qml-mp: named lock")
        """For coroutines. A task that is cancelled meanwhile leaves when the thread is done, which the limits
        of the storage bound: before, nobody can say whether the lock was taken."""

    @property
    def is_held(self) -> bool:
        """Whether this process acquired it and its ttl has not passed since, by the monotonic clock."""
        mine = self._in_hand()
        return mine is not None and time.monotonic() < (mine.held_until or 0)

    def acquire(self) -> NamedLock:
        """Wait for it. Raises `LockNotAcquired` when `timeout` has passed."""
        mine, deadline, pauses = self._begin(blocks=True), self._deadline(), growing_pauses()
        try:
            while not (self._has_object(mine) and self._try(mine)):
                self._check(deadline)
                time.sleep(next(pauses))
        except BaseException:
            self._give_up(mine)
            raise
        return self

    def renew(self, ttl: Duration | None = None) -> None:
        """Hold it for the ttl (default: the first one) from now on. Raises `LockLost` when it is not held any
        more, as its ttl has passed; it may be somebody else's by now. The thread waits for the storage: in a
        coroutine, `await asyncio.to_thread(lock.renew)`."""
        lasts = self._ttl if ttl is None else _checked_ttl(ttl)
        until, mine = time.monotonic() + lasts.total_seconds(), self._in_hand()
        if mine is None or not self._storage().renew_lock(self.name, mine.owner, lasts):
            if mine is not None:
                mine.held_until = 0.0
            raise self._lost()
        mine.held_until = until

    def release(self) -> None:
        """Give it up. Raises `LockLost` when it was not held any more, as its ttl had passed."""
        mine = self._in_hand()
        if mine is None:
            return  # the parent's
        mine.held_until = 0.0
        was_held = False
        try:
            was_held = self._storage().release_lock(self.name, mine.owner)
        except BaseException:
            self._left.add(mine.owner)
            raise
        finally:
            self._acquisitions.pop(os.getpid(), None)
        if not was_held:
            raise self._lost()

    def __enter__(self) -> NamedLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    async def __aenter__(self) -> NamedLock:
        import asyncio

        mine, deadline, pauses = self._begin(blocks=False), self._deadline(), growing_pauses()
        try:
            while not (self._has_object(mine) and await self._threads.to_the_end(partial(self._try, mine))):
                self._check(deadline)
                await asyncio.sleep(next(pauses))
        except (Exception, asyncio.CancelledError):
            await self._threads.to_the_end(partial(self._give_up, mine))
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._threads.to_the_end(partial(self._leave, error))

    def _begin(self, *, blocks: bool) -> _Acquisition:
        """`blocks`: its thread does nothing else until it is over, not even what another task would do."""
        mine = _Acquisition(owner=_new_owner(), thread=threading.get_ident(), task=_current_task())
        other = self._acquisitions.get(os.getpid())
        if (
            other is not None
            and other.thread == mine.thread
            and (blocks or other.task is None or other.task is mine.task)
        ):
            raise ConfigurationError(f"The lock {self.name!r} is held here already, and is not reentrant.")
        return mine

    def _deadline(self) -> float:
        return float("inf") if self._timeout is None else time.monotonic() + self._timeout.total_seconds()

    def _has_object(self, mine: _Acquisition) -> bool:
        """Whether no other thread or coroutine uses it, from now on."""
        return self._acquisitions.setdefault(os.getpid(), mine) is mine

    def _try(self, mine: _Acquisition) -> bool:
        storage, until = self._storage(), time.monotonic() + self._ttl.total_seconds()
        holder = storage.lock_holder(self.name)
        if holder is not None:
            if holder not in self._left and not _is_dead(holder):
                return False
            storage.release_lock(self.name, holder)
        mine.may_be_stored = True
        try:
            token = storage.take_lock(self.name, mine.owner, self._ttl)
        except StorageError:  # a release would hardly be answered either
            self._left.add(mine.owner)
            mine.may_be_stored = False
            raise
        mine.may_be_stored = token is not None
        if token is None:
            return False
        self.token, mine.held_until = token, until
        return True

    def _check(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            waited = format_duration(self._timeout or timedelta())
            raise LockNotAcquired(f"The lock {self.name!r} is held by another (waited {waited}).")

    def _give_up(self, mine: _Acquisition) -> None:
        """What was taken is released, lest it be held by nobody for its whole ttl."""
        if self._acquisitions.get(os.getpid()) is not mine:
            return
        try:
            if mine.may_be_stored:
                self._storage().release_lock(self.name, mine.owner)
        except StorageError as problem:
            self._left.add(mine.owner)
            self._warn_of(problem)
        finally:
            self._acquisitions.pop(os.getpid(), None)

    def _leave(self, error: BaseException | None) -> None:
        """The block's own error says more than what its end meets, and a job is retried by it or not."""
        try:
            self.release()
        except LockLost:
            if error is None:
                raise
        except StorageError as problem:
            if error is None:
                raise
            self._warn_of(problem)

    def _warn_of(self, problem: StorageError) -> None:
        logger.warning("The lock %r stays taken until its ttl is over: %s", self.name, problem)

    def _in_hand(self) -> _Acquisition | None:
        """That of this process; None: it has none, or only makes one."""
        mine = self._acquisitions.get(os.getpid())
        return None if mine is None or mine.held_until is None else mine

    def _lost(self) -> LockLost:
        return LockLost(
            f"The lock {self.name!r} was not held to the end: its ttl of {format_duration(self._ttl)} had "
            "passed. Take a longer one, or renew it."
        )


@dataclass(slots=True, kw_only=True)
class _Acquisition:
    """One use of the object, from its first try to its release. Of the other threads, those that call `renew`
    or `is_held` meanwhile write and read it."""

    owner: str
    """What the storage knows it by. No two have the same: one would be taken for a renewal of the other."""
    thread: int
    task: object
    """The task of asyncio that made it; None: no task ran."""
    may_be_stored: bool = False
    """From before it is taken on: an interrupt may come before the answer is noted."""
    held_until: float | None = None
    """By the monotonic clock; zero: it was lost; None: it is not acquired yet."""


def _new_owner() -> str:
    process = host.identity()
    return _BETWEEN.join([process.host, str(process.pid), str(process.started_ticks), uuid.uuid4().hex])


def _current_task() -> object:
    asyncio = sys.modules.get("asyncio")  # where none has imported it, no task runs
    try:
        return None if asyncio is None else asyncio.current_task()
    except RuntimeError:  # this thread has no loop
        return None


def _is_dead(owner: str) -> bool:
    """Whether the process of an owner is proved dead; no other program's owner is."""
    parts = owner.split(_BETWEEN)
    if len(parts) != 4 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        return False
    process = ProcessIdentity(host=parts[0], pid=int(parts[1]), started_ticks=int(parts[2]))
    return host.is_alive(process) is False


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= _MAX_NAME_CHARS or name.startswith(_RESERVED):
        raise ConfigurationError(
            f"The name of the lock is {shown(name)}; it must be text of 1 to {_MAX_NAME_CHARS} characters "
            f"that does not begin with {_RESERVED!r}."
        )
    try:
        check_text(name, what="The name of the lock")
    except InvalidJob as problem:
        raise ConfigurationError(str(problem)) from None


def _checked_ttl(ttl: Duration) -> timedelta:
    read = parse_duration(ttl, what="ttl")
    if not _SHORTEST_TTL <= read <= timedelta(days=366):
        raise ConfigurationError(f"ttl is {shown(ttl)}; it must be from 100ms to 366 days.")
    return read
