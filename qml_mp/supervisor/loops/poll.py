"""Supervisor: looks for jobs on behalf of its idle workers, should a wake-up have been missed.

One look for all of them, and none while all are busy; the workers themselves look only rarely, in case the
supervisor cannot reach storage.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run

_WHILE_LISTENING = 5  # times the interval: wake-ups come by themselves then


class PollLoop(Loop):
    """Wakes the idle workers when a job waits that they can run. While nothing is heard of commits, has the
    loops that look for new rows look, too: a job that was scheduled meanwhile may be due soon."""

    name = "poll"

    def __init__(
        self, run: Run, *, is_listening: Callable[[], bool], hasten_others: Callable[[], None]
    ) -> None:
        """`is_listening`: whether storage tells of commits at this moment."""
        super().__init__(run, interval=_WHILE_LISTENING * run.config.polling_interval)
        self._is_listening = is_listening
        self._hasten_others = hasten_others

    def tick(self, storage: Storage) -> timedelta | None:
        self._look(storage)
        if self._is_listening():
            return None
        self._hasten_others()
        return self._run.config.polling_interval

    def _look(self, storage: Storage) -> None:
        pool, says = self._run.pool, self._run.registration.says
        if pool.paused or not any(worker.is_idle for worker in pool):
            return
        waiting = {line.method for line in storage.method_stats(says.queues, among=1)}
        if waiting if says.methods is None else waiting.intersection(says.methods):
            pool.wake_idle()
