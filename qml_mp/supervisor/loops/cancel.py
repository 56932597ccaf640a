"""Supervisor: running jobs that somebody wants cancelled."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.events.facts import CancelStarted, ClaimFacts
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop


class CancelLoop(Loop):
    """Starts the ladder of jobs in the hands of workers that somebody wants cancelled. Asks storage while a
    worker of this server is busy."""

    name = "cancel"
    interval = timedelta(seconds=1)
    hasten_after = timedelta(milliseconds=100)

    def tick(self, storage: Storage) -> None:
        if not any(worker.is_busy for worker in self._run.pool):
            return
        requests = storage.cancel_requests(self._run.registration.id)
        # Not before: while storage is waited for, workers are reaped and their pipes closed.
        workers = {worker.worker_id: worker for worker in self._run.pool}
        for request in requests:
            worker = workers.get(request.worker_id)
            plan = self._run.graces.cancel(asked=self._run.clock.monotonic())
            if worker is not None and worker.cancel(request.key, plan):
                claim = ClaimFacts(
                    job_id=request.key.job_id, method=request.method, claim_seq=request.key.claim_seq,
                    attempt=request.attempt, worker_id=request.worker_id,
                )  # fmt: skip
                self._run.events.emit(CancelStarted(claim=claim))
