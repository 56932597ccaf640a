"""Supervisor: hears from storage that something was committed, at most once in a moment. Loops that look for
new rows are due soon then, and idle workers are woken.

While all workers are busy nobody waits to be woken, and on SQLite nearly all commits are their own. Then it
rests after each commit for as long as the most hurried of the loops would wait anyway; a worker that has
nothing more to do rings the bell, which ends the rest.
"""

from __future__ import annotations

from qml_mp.errors import StorageError
from qml_mp.storage.store import Storage
from qml_mp.storage.waiting import Waker, WakeUp
from qml_mp.supervisor.loops.loop import LoopTable
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run

_QUIET_S = 0.01  # after a wake-up: our own workers' commits wake us too, and each look costs a turn
_REST_S = 0.11  # as long as the loop of cancels waits between two looks, which then falls into the same turn
_REOPEN_AFTER_S = 1.0


class StorageListener(Part):
    """Opened when it is needed, closed before a fork and while storage cannot be reached. Polling stays the
    safety net while it is closed."""

    def __init__(self, run: Run, storage: Storage, *, loops: LoopTable) -> None:
        self._storage = storage
        self._loops = loops
        self._pool = run.pool
        self._stop = run.stop
        self._reaching = run.reaching
        self._clock = run.clock
        self._tries = run.retrying("Commits wake this server again")
        self._waker: Waker | None = None
        self._quiet_until = 0.0
        self._rests_until: float | None = None
        self._reopen_at = 0.0

    def fds(self) -> list[int]:
        """Empty while it is quiet, and when the server stops; that of the bell while it rests."""
        if self._stop.has_begun:
            return []
        if self._rests_until is not None:
            return [self._pool.bell.fd]
        return [] if self._clock.monotonic() < self._quiet_until else self.own_fds()

    def own_fds(self) -> list[int]:
        return [] if self._waker is None else [self._waker.fileno()]

    @property
    def is_open(self) -> bool:
        """Whether commits wake it at this moment."""
        return self._waker is not None

    def next_at(self) -> float:
        now = self._clock.monotonic()
        if self._stop.has_begun or self._reaching.is_failing:
            return float("inf")
        if self._waker is None:
            return max(self._reopen_at, now)
        if self._rests_until is not None:
            return self._rests_until
        return self._quiet_until if now < self._quiet_until else float("inf")

    def turn(self) -> None:
        if self._stop.has_begun:
            return
        if self._reaching.is_failing:
            self.close()  # it may be as dead and never say so, where a proxy stands in for the server
        # It was closed for a fork or an outage, and commits may have come meanwhile.
        may_have_missed = not self._reaching.is_failing and self._open()
        told = self._take()
        if may_have_missed:
            told = WakeUp()
        if told is not None:
            self._loops.hasten(jobs_alone=not told.more)
            self._pool.wake_idle(told.jobs)
            self._rest_while_all_are_busy()

    def before_fork(self) -> None:
        self.close()

    def close(self) -> None:
        if self._waker is not None:
            self._waker.close()
            self._waker = None
        self._end_rest()

    def _open(self) -> bool:
        """Whether it was closed and is open now."""
        now = self._clock.monotonic()
        if self._waker is not None or now < self._reopen_at:
            return False
        try:
            self._waker = self._storage.open_waker()
        except StorageError as error:
            self._reopen_at = now + self._tries.failed("Listening for commits failed", error, now=now)
            return False
        self._tries.worked()
        if self._waker is None:
            self._reopen_at = now + _REOPEN_AFTER_S
        return self._waker is not None

    def _take(self) -> WakeUp | None:
        """The wake-up that has come, if any; then it is quiet for a moment."""
        if self._waker is None or self._goes_on_resting() or self._clock.monotonic() < self._quiet_until:
            return None
        try:
            came = self._waker.drain(soon=not self._all_are_busy())
        except StorageError:
            self.close()
            self._reopen_at = self._clock.monotonic() + _REOPEN_AFTER_S
            return None
        if came is not None:
            self._quiet_until = self._clock.monotonic() + _QUIET_S
        return came

    def _rest_while_all_are_busy(self) -> None:
        self._pool.bell.listen()  # before the look: who had nothing to do until then does not ring
        self._rests_until = self._clock.monotonic() + _REST_S
        if not self._all_are_busy():
            self._end_rest()

    def _all_are_busy(self) -> bool:
        """Whether there are workers, and each has a job in hand now."""
        now = self._clock.monotonic()
        for worker in self._pool:
            worker.look(now)
        return len(self._pool) > 0 and all(worker.is_busy for worker in self._pool)

    def _goes_on_resting(self) -> bool:
        if self._rests_until is None:
            return False
        if self._clock.monotonic() < self._rests_until and not self._pool.bell.was_rung():
            return True
        self._end_rest()
        return False

    def _end_rest(self) -> None:
        self._rests_until = None
        self._pool.bell.stop_listening()
