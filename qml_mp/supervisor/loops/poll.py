"""Supervisor: looks for jobs on behalf of its idle workers, should a wake-up have been missed, and when a
rate lets the next of them begin.

One look for all of them, and none while all are busy: that is made up for once one is idle. The workers
themselves look only rarely, in case the supervisor cannot reach storage.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run

_WHILE_LISTENING = 5  # times the interval: wake-ups come by themselves then
_MAY_BE_LIMITED = timedelta(seconds=1)
_AT_MOST_EVERY = timedelta(milliseconds=5)
_ALL_BUSY = timedelta(milliseconds=20)  # none of them says so when it waits for a rate


class PollLoop(Loop):
    """Wakes as many idle workers as there are jobs that they can run and that no limit holds back. While
    there are limits, it looks after each commit that wakes the server, and when a rate opens again. While
    nothing is heard of commits, has the loops that look for new rows look, too: a job that was scheduled
    meanwhile may be due soon."""

    name = "poll"
    hasten_after = _MAY_BE_LIMITED
    looks_at_jobs = True

    def __init__(
        self, run: Run, *, is_listening: Callable[[], bool], hasten_others: Callable[[], None]
    ) -> None:
        """`is_listening`: whether storage tells of commits at this moment."""
        super().__init__(run, interval=_WHILE_LISTENING * run.config.polling_interval)
        self._is_listening = is_listening
        self._hasten_others = hasten_others
        self._waits_for_rate = False
        self._fell_out = False
        """Whether there was no look at the newest tick, as nobody could take a job."""

    def due_at(self) -> float:
        if self._fell_out and self._has_takers:
            # Jobs that wait for a rate can be among those that were told of meanwhile.
            self.hasten()
        return super().due_at()

    def tick(self, storage: Storage) -> timedelta | None:
        sooner = self._look(storage)
        if self._is_listening():
            return sooner
        due_at = self._due_at
        self._hasten_others()
        self._due_at = due_at  # it is not one of them
        return min(sooner or timedelta.max, self._run.config.polling_interval)

    def _look(self, storage: Storage) -> timedelta | None:
        pool, says = self._run.pool, self._run.registration.says
        self._fell_out = not self._has_takers
        if self._fell_out:
            return _ALL_BUSY if self._waits_for_rate and not pool.paused else None
        openings = storage.openings(says.queues, methods=says.methods)
        self.hasten_after = _AT_MOST_EVERY if openings.limited else _MAY_BE_LIMITED
        self._waits_for_rate = openings.next_in is not None
        if openings.jobs:
            pool.wake_idle(openings.jobs)
        return None if openings.next_in is None else max(openings.next_in, _AT_MOST_EVERY)

    @property
    def _has_takers(self) -> bool:
        """Whether there are workers that could take a job now."""
        pool = self._run.pool
        return not pool.paused and any(worker.is_idle for worker in pool)
