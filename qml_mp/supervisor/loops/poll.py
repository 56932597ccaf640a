"""Supervisor: looks for jobs on behalf of its idle workers, should a wake-up have been missed.

One look for all of them, and none while all are busy; the workers themselves look only rarely, in case the
supervisor cannot reach storage.
"""

from __future__ import annotations

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop


class PollLoop(Loop):
    """Wakes the idle workers when a job waits that they can run."""

    name = "poll"

    def tick(self, storage: Storage) -> None:
        pool, says = self._run.pool, self._run.registration.says
        if pool.paused or not any(worker.is_idle for worker in pool):
            return
        waiting = {line.method for line in storage.method_stats(says.queues, among=1)}
        if waiting if says.methods is None else waiting.intersection(says.methods):
            pool.wake_idle()
