"""Supervisor: finds the running jobs that somebody wants cancelled, and starts their ladder."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.clock import Clock
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import CancelStarted
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.pool import WorkerPool

_INTERVAL = timedelta(seconds=1)
_AFTER_A_COMMIT = timedelta(milliseconds=100)


class CancelLoop(Loop):
    """Asks storage while a worker of this server is busy."""

    def __init__(
        self,
        *,
        registration: ServerRegistration,
        pool: WorkerPool,
        graces: Graces,
        clock: Clock,
        events: Emitter,
    ) -> None:
        super().__init__("cancel", interval=_INTERVAL, hasten_after=_AFTER_A_COMMIT)
        self._registration = registration
        self._pool = pool
        self._graces = graces
        self._clock = clock
        self._events = events

    def tick(self, storage: Storage) -> None:
        if not any(worker.is_busy for worker in self._pool):
            return
        workers = {worker.worker_id: worker for worker in self._pool}
        for request in storage.cancel_requests(self._registration.id):
            worker = workers.get(request.worker_id)
            plan = self._graces.cancel(asked=self._clock.monotonic())
            if worker is not None and worker.cancel(request.key, plan):
                self._events.emit(CancelStarted(key=request.key, worker_id=request.worker_id))
