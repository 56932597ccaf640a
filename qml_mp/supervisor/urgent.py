"""Supervisor: waits for a reply of storage, and sees to workers, signals and limits meanwhile.

The supervisor has one thread, and a database may be slow or silent. So its storage waits with this: on
the connection, and on everything that must not wait for it.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.wait import poll_until

_FORK_AFTER_S = 0.2
"""A reply that takes no longer comes before a fork: it may give a dead worker's job to others, who need
the processor more than a new worker."""
_SHORTEST_WAIT_S = 0.01


class Urgent(Protocol):
    """What must not wait for storage. None of it may use the storage."""

    def fds(self) -> Iterable[int]:
        """Readable when there is something to see to."""

    def next_at(self) -> float:
        """When there is something to see to although nothing is readable."""

    def see_to(self, ready: frozenset[int], *, may_fork: bool) -> None:
        """Do it. Workers are forked only with `may_fork`."""

    def give_up_at(self) -> float:
        """From when on storage is not worth waiting for."""


class UrgentFirst:
    """`StorageWait` of the protocol."""

    def __init__(self, urgent: Urgent) -> None:
        self._urgent = urgent
        self.is_waiting = False
        """Whether an operation of the storage waits at this moment."""
        self._seen_to_at = 0.0

    @contextmanager
    def for_storage(self, storage: Storage) -> Iterator[None]:
        """Let the storage wait with this in the block."""
        storage.wait_with(self)
        try:
            yield
        finally:
            storage.wait_with(None)

    @property
    def give_up_at(self) -> float:
        return self._urgent.give_up_at()

    def wait(self, fd: int, *, reading: bool, writing: bool, until: float) -> tuple[bool, bool]:
        wanted = (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0)
        fork_at = time.monotonic() + _FORK_AFTER_S
        while True:
            came = self._once({fd: wanted}, fork_at=fork_at, until=until)
            if came:
                failed = came & ~(select.POLLIN | select.POLLOUT)  # told to whoever reads or writes
                return reading and bool(came & select.POLLIN or failed), writing and bool(
                    came & select.POLLOUT or failed
                )
            if time.monotonic() >= min(until, self.give_up_at):
                return False, False

    def pause(self, seconds: float) -> None:
        self._once({}, fork_at=float("inf"), until=time.monotonic() + seconds)

    def _once(self, own: dict[int, int], *, fork_at: float, until: float) -> int:
        """Wait for one of everything; what came of `own`."""
        now = time.monotonic()
        next_at = max(self._urgent.next_at(), self._seen_to_at + _SHORTEST_WAIT_S)
        earliest = min(until, self.give_up_at, next_at, fork_at if fork_at > now else next_at)
        ready = poll_until({**dict.fromkeys(self._urgent.fds(), select.POLLIN), **own}, until=earliest)
        came = sum(ready.pop(fd, 0) for fd in own)
        now = time.monotonic()
        if ready or now >= next_at or now >= fork_at:
            self.is_waiting, self._seen_to_at = True, now
            try:
                self._urgent.see_to(frozenset(ready), may_fork=now >= fork_at)
            finally:
                self.is_waiting = False
        return came
