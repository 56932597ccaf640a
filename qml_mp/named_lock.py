"""Client and worker: a named lock in the storage, held by one process of all that share it."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType

from qml_mp import host
from qml_mp.clock import growing_pauses
from qml_mp.core.payload import check_text
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.errors import ConfigurationError, InvalidJob, LockLost, LockNotAcquired, shown
from qml_mp.storage.store import Storage
from qml_mp.units import Duration, format_duration, parse_duration

_MAX_NAME_CHARS = 200
_RESERVED = "qml-mp:"
_SHORTEST_TTL = timedelta(milliseconds=100)
_BETWEEN = "|"  # the parts of an owner


class NamedLock:
    """`with` it, or `async with` it. Made by `QmlApp.lock`.

    It is held until the block ends, but no longer than `ttl` after it was acquired or renewed: nobody renews
    it by itself, so take a ttl that is longer than the work, or call `renew` on the way. When the process
    that holds it dies, whoever waits on the same machine gets it at once, and others when the ttl is over.
    One that was lost is seen by `is_held`, by `renew`, and at the end of the block, each of which but the
    first raises `LockLost`. Not reentrant. A process that was forked off within the block does not hold it.
    """

    def __init__(
        self, name: str, *, storage: Callable[[], Storage], ttl: Duration, timeout: Duration | None
    ) -> None:
        """`timeout`: how long to wait for it, zero: not at all, None: without a limit."""
        _check_name(name)
        self.name = name
        self.token = 0
        """Grows with each acquisition of any lock. Hand it to what you write to, and refuse lower ones there:
        it fences out a holder that was stopped for longer than its ttl."""
        self._storage = storage
        self._ttl = _checked_ttl(ttl)
        self._timeout = None if timeout is None else parse_duration(timeout, what="timeout")
        self._id = uuid.uuid4().hex
        self._pid = 0
        self._held_until = 0.0

    @property
    def is_held(self) -> bool:
        """Whether this process acquired it and its ttl has not passed since, by the monotonic clock."""
        return self._pid == os.getpid() and time.monotonic() < self._held_until

    def acquire(self) -> NamedLock:
        """Wait for it. Raises `LockNotAcquired` when `timeout` has passed."""
        deadline, pauses = self._begin(), growing_pauses()
        while not self._try():
            self._check(deadline)
            time.sleep(next(pauses))
        return self

    def renew(self, ttl: Duration | None = None) -> None:
        """Hold it for the ttl (default: the first one) from now on. Raises `LockLost` when it is not held any
        more; it may be somebody else's by now."""
        lasts = self._ttl if ttl is None else _checked_ttl(ttl)
        until = time.monotonic() + lasts.total_seconds()
        if self._pid != os.getpid() or not self._storage().renew_lock(self.name, self._owner(), lasts):
            self._held_until = 0.0
            raise self._lost()
        self._held_until = until

    def release(self) -> None:
        """Give it up. Raises `LockLost` when it was not held any more."""
        if self._pid != os.getpid():
            return  # the parent's
        self._pid, self._held_until = 0, 0.0
        if not self._storage().release_lock(self.name, self._owner()):
            raise self._lost()

    def __enter__(self) -> NamedLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    async def __aenter__(self) -> NamedLock:
        import asyncio

        deadline, pauses = self._begin(), growing_pauses()
        while not await asyncio.to_thread(self._try):
            self._check(deadline)
            await asyncio.sleep(next(pauses))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import asyncio

        await asyncio.to_thread(self._leave, error)

    def _begin(self) -> float:
        if self._pid == os.getpid():
            raise ConfigurationError(f"The lock {self.name!r} is held by this very object; make another.")
        self._process = host.identity()
        return float("inf") if self._timeout is None else time.monotonic() + self._timeout.total_seconds()

    def _try(self) -> bool:
        storage, until = self._storage(), time.monotonic() + self._ttl.total_seconds()
        holder = storage.lock_holder(self.name)
        if holder is not None and holder != self._owner():
            if not _is_dead(holder):
                return False
            storage.release_lock(self.name, holder)
        token = storage.take_lock(self.name, self._owner(), self._ttl)
        if token is None:
            return False
        self.token, self._pid, self._held_until = token, os.getpid(), until
        return True

    def _check(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            waited = format_duration(self._timeout or timedelta())
            raise LockNotAcquired(f"The lock {self.name!r} is held by another process (waited {waited}).")

    def _leave(self, error: BaseException | None) -> None:
        try:
            self.release()
        except LockLost:
            if error is None:
                raise

    def _owner(self) -> str:
        process = self._process
        return _BETWEEN.join([process.host, str(process.pid), str(process.started_ticks), self._id])

    def _lost(self) -> LockLost:
        return LockLost(
            f"The lock {self.name!r} was not held to the end: its ttl of {format_duration(self._ttl)} had "
            "passed. Take a longer one, or renew it."
        )


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
