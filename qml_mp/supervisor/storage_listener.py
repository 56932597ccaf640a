"""Supervisor: the storage's wake-ups: opened when needed, closed before a fork, throttled."""

from __future__ import annotations

import logging

from qml_mp.clock import Clock
from qml_mp.errors import StorageError
from qml_mp.storage.protocol import Storage
from qml_mp.storage.waiting import Waker

logger = logging.getLogger(__name__)

_QUIET_S = 0.01  # after news: our own workers' commits are news too, and each look costs a turn
_REOPEN_AFTER_S = 1.0


class StorageListener:
    """Tells when something was committed. Polling stays the safety net while it is down."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._storage = storage
        self._clock = clock
        self._waker: Waker | None = None
        self._quiet_until = 0.0
        self._reopen_at = 0.0

    @property
    def fds(self) -> list[int]:
        """What to wait on now; empty while it is quiet or down."""
        return [] if self._waker is None or self._clock.monotonic() < self._quiet_until else self.own_fds

    @property
    def own_fds(self) -> list[int]:
        """The descriptors that it holds."""
        return [] if self._waker is None else [self._waker.fileno()]

    def next_at(self) -> float | None:
        """When it wants to be asked again although nothing is readable."""
        now = self._clock.monotonic()
        if self._waker is None:
            return max(self._reopen_at, now)
        return self._quiet_until if now < self._quiet_until else None

    def listen(self) -> bool:
        """Open the source of wake-ups if it is closed; True when it was (news may have been missed)."""
        now = self._clock.monotonic()
        if self._waker is not None or now < self._reopen_at:
            return False
        try:
            self._waker = self._storage.open_waker()
        except StorageError as error:
            logger.debug("Cannot listen to storage: %s", error)
        if self._waker is None:
            self._reopen_at = now + _REOPEN_AFTER_S
        return self._waker is not None

    def take(self) -> bool:
        """Whether there is news; then it is quiet for a moment."""
        if self._waker is None or self._clock.monotonic() < self._quiet_until:
            return False
        try:
            came = self._waker.drain()
        except StorageError:
            self.close()
            self._reopen_at = self._clock.monotonic() + _REOPEN_AFTER_S
            return False
        if came:
            self._quiet_until = self._clock.monotonic() + _QUIET_S
        return came

    def close(self) -> None:
        """Before a fork, and at the end."""
        if self._waker is not None:
            self._waker.close()
            self._waker = None
