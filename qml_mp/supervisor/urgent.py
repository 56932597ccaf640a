"""Supervisor: waits for a reply of storage, and looks after workers, signals and limits meanwhile.

The supervisor has one thread, and a database may be slow or silent. So its storage waits with this: on
the connection, and on everything that must not wait for it.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from qml_mp.errors import ConfigurationError
from qml_mp.storage.store import Storage
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.stopping import Stop
from qml_mp.supervisor.wait import poll_until, wait_for
from qml_mp.supervisor.workers.fork import fork_to_ask, kill_and_reap

STORAGE_PATIENCE = timedelta(seconds=0.2)
"""Longest that a supervisor lets one operation wait for a lock of somebody else."""
_FORK_AFTER_S = 0.2
"""A reply that takes no longer is waited for before a fork: it may give a dead worker's job to others, who
need the processor more than a new worker."""
_SHORTEST_WAIT_S = 0.01
_READ_BYTES = 65536
_STOOD_STILL_S = 0.05  # what a wait takes longer than meant, or goes by between two, is no time of storage's


class UrgentFirst(Part):
    """What storage waits with, a `StorageWait`. And the part that closes storage before a fork."""

    def __init__(
        self,
        urgent: Part,
        *,
        all_parts: Part,
        storage: Storage,
        stop: Stop,
        manage_workers: Callable[[], None],
    ) -> None:
        """`urgent` must not wait for storage, and none of it may use that. `all_parts` tell what no child
        may keep. `manage_workers` forks those that are missing."""
        self._urgent = urgent
        self._all_parts = all_parts
        self._storage = storage
        self._stop = stop
        self._manage_workers = manage_workers
        self._is_waiting = False
        self._child_fds: list[int] = []
        """Of the child that makes a call of storage's."""
        self._turned_at = 0.0
        self._waited_at = time.monotonic()
        """When the newest wait was over: what has passed since is this process's own time."""

    def __enter__(self) -> Self:
        """Until the end of the block, storage waits with this."""
        self._storage.wait_with(self)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._storage.wait_with(None)

    def own_fds(self) -> list[int]:
        return self._child_fds

    def before_fork(self) -> None:
        """No storage handle crosses a fork. While a reply is being waited for, the connection stays as it
        is, and the child drops it without a message to the database."""
        if not self._is_waiting:
            self._storage.close()

    def between(self, may_fork: bool = False, *, until: float = 0.0) -> None:
        """Look after what is urgent between two operations of storage."""
        wait_for(self._urgent.fds(), until=until)
        self._handle_urgent(may_fork=may_fork)

    @property
    def give_up_at(self) -> float:
        if time.monotonic() - self._waited_at > _STOOD_STILL_S:
            self._stop.renew_leaving()
        return self._stop.give_up_at()

    def wait(self, fd: int, *, reading: bool, writing: bool, until: float) -> tuple[bool, bool]:
        wanted = (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0)
        fork_at = time.monotonic() + _FORK_AFTER_S
        while True:
            came = self._once({fd: wanted}, fork_at=fork_at, until=until)
            if came:
                failed = came & ~(select.POLLIN | select.POLLOUT)  # the caller's read or write raises it
                return reading and bool(came & select.POLLIN or failed), writing and bool(
                    came & select.POLLOUT or failed
                )
            if time.monotonic() >= min(until, self.give_up_at):
                return False, False

    def call_blocking(self, call: Callable[[], str], *, until: float) -> str:
        """In a child, which is killed when it is late. A connection that is open (of the listener, while the
        other is made) stays as it is: the child drops it, as one does that is forked amid a wait. Where none
        can be forked (no room, or threads of a host's), the call holds everything up."""
        try:
            reading, child = fork_to_ask(call, own_fds=self._all_parts.own_fds())
        except (OSError, ConfigurationError):
            return call()
        self._child_fds = [reading, *child.fds]
        said = b""
        try:
            while self.wait(reading, reading=True, writing=False, until=until)[0]:
                part = os.read(reading, _READ_BYTES)
                if not part:
                    return said.decode()
                said += part
            return ""
        finally:
            self._child_fds = []
            kill_and_reap(child)
            os.close(reading)

    def pause(self, seconds: float) -> None:
        self._once({}, fork_at=float("inf"), until=time.monotonic() + seconds)

    def _once(self, own: dict[int, int], *, fork_at: float, until: float) -> int:
        """Wait for one of everything; what came of `own`."""
        now = time.monotonic()
        next_at = max(self._urgent.next_at(), self._turned_at + _SHORTEST_WAIT_S)
        earliest = min(until, self.give_up_at, next_at, fork_at if fork_at > now else next_at)
        ready = poll_until({**dict.fromkeys(self._urgent.fds(), select.POLLIN), **own}, until=earliest)
        came = sum(ready.pop(fd, 0) for fd in own)
        latest, now = max(now, earliest), time.monotonic()
        if now - latest > _STOOD_STILL_S:
            self._stop.renew_leaving()
        self._waited_at = now
        if ready or now >= next_at or now >= fork_at:
            self._is_waiting, self._turned_at = True, now
            try:
                self._handle_urgent(may_fork=now >= fork_at and not came)
            finally:
                self._is_waiting = False
        return came

    def _handle_urgent(self, *, may_fork: bool) -> None:
        self._urgent.turn()
        if may_fork:
            self._manage_workers()
