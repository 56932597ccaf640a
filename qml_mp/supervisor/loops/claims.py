"""Supervisor: the claims that its living workers hold: those that somebody wants cancelled, and those that
no worker shows.

What a worker holds, it shows sooner or later. A claim that came with a lost reply is found by the worker
itself, which is in doubt from then on. Should one stay behind all the same, the worker is told to look: its
supervisor never gives away a claim of a living worker, unless it has taken the ticket.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import timedelta

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Release
from qml_mp.events.facts import CancelStarted, ClaimFacts, ClaimReclaimed
from qml_mp.ipc.slot import Activity
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.unread_replies import claims_not_read
from qml_mp.supervisor.workers.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

_SAYS_NOTHING = (Activity.BOOTING, Activity.FETCHING, Activity.FINISHING)

_Seen = tuple[str, ClaimKey]


class CancelLoop(Loop):
    """Starts the ladder of jobs in the hands of workers that somebody wants cancelled. Asks storage while a
    worker of this server is busy."""

    name = "cancel"
    interval = timedelta(seconds=1)
    hasten_after = timedelta(milliseconds=100)

    def tick(self, storage: Storage) -> None:
        if not any(worker.is_busy for worker in self._run.pool):
            return
        workers = {worker.worker_id: worker for worker in self._run.pool}
        for request in storage.cancel_requests(self._run.registration.id):
            worker = workers.get(request.worker_id)
            plan = self._run.graces.cancel(asked=self._run.clock.monotonic())
            if worker is not None and worker.cancel(request.key, plan):
                self._run.events.emit(CancelStarted(key=request.key, worker_id=request.worker_id))


class UnshownClaimsLoop(Loop):
    """Compares the claims of this server with what its workers show. A claim is acted on when two ticks
    have found it unshown; those of dead workers that are about to be settled are left alone."""

    name = "unshown claims"
    interval = timedelta(seconds=5)

    def __init__(self, run: Run, *, settling: SettleLoop) -> None:
        super().__init__(run)
        self._settling = settling
        self._suspects: set[_Seen] = set()
        self._told: set[_Seen] = set()

    def tick(self, storage: Storage) -> None:
        workers = {worker.worker_id: worker for worker in self._run.pool}
        unshown: set[_Seen] = set()
        claims = storage.claims_of_server(self._run.registration.id)
        for claim in claims:
            worker, seen = workers.get(claim.worker_id), (claim.worker_id, claim.key)
            if claim.worker_id in self._settling.unsettled_ids:
                continue
            if worker is not None and self._may_know(worker, claim):
                continue
            unshown.add(seen)
            if seen not in self._suspects or seen in self._told:
                continue
            if worker is None:
                self._release(storage, claim)
            elif claim.key in self._not_read(worker, claims):
                worker.taken.add(claim.key)
            elif worker.doubt():
                self._told.add(seen)
                logger.warning(
                    "Worker %s does not show its claim of job %s; it is told to look",
                    worker.number,
                    claim.job.id,
                    extra={"job_id": claim.job.id, "worker_id": claim.worker_id},
                )
        self._suspects = unshown
        self._told &= unshown

    def _may_know(self, worker: WorkerProcess, claim: Claim) -> bool:
        view = worker.look(self._run.clock.monotonic())
        return (
            view.activity in _SAYS_NOTHING
            or view.key == claim.key
            or claim.key in worker.taken
            or claim.key in worker.channels.ended.read()[1]
        )

    def _not_read(self, worker: WorkerProcess, claims: Sequence[Claim]) -> Collection[ClaimKey]:
        """Those that came with a reply so late that they were not found when its ticket was taken."""
        held = [claim.key for claim in claims if claim.worker_id == worker.worker_id]
        return claims_not_read(worker, held)

    def _release(self, storage: Storage, claim: Claim) -> None:
        """Of a worker that is neither alive nor waiting to be settled: proved by its row, which is gone."""
        if claim.worker_id in {worker.id for worker in storage.list_workers()}:
            return
        release = Release(reason="its worker is gone", not_begun=True)
        finished = storage.finish(claim, release, retention=self._run.retention)
        self._run.pool.totals.add_returned(claim, finished)
        if finished.accepted:
            facts = ClaimFacts.of(claim, pid=None)
            self._run.events.emit(ClaimReclaimed(claim=facts, state=finished.state))
            self._run.pool.wake_idle()
