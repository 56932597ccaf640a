"""Supervisor: finds the running jobs that somebody wants cancelled, and starts their ladder."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.events.facts import CancelStarted
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run

_INTERVAL = timedelta(seconds=1)
_AFTER_A_COMMIT = timedelta(milliseconds=100)


class CancelLoop(Loop):
    """Asks storage while a worker of this server is busy."""

    def __init__(self, run: Run) -> None:
        super().__init__("cancel", interval=_INTERVAL, hasten_after=_AFTER_A_COMMIT)
        self._run = run

    def tick(self, storage: Storage) -> None:
        if not any(worker.is_busy for worker in self._run.pool):
            return
        workers = {worker.worker_id: worker for worker in self._run.pool}
        for request in storage.cancel_requests(self._run.registration.id):
            worker = workers.get(request.worker_id)
            plan = self._run.graces.cancel(asked=self._run.clock.monotonic())
            if worker is not None and worker.cancel(request.key, plan):
                self._run.events.emit(CancelStarted(key=request.key, worker_id=request.worker_id))
