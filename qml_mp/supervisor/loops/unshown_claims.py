"""Supervisor: its claims that no worker shows.

What a worker holds, it shows sooner or later. A claim that came with a lost reply is found by the worker
itself, which is in doubt from then on. Should one stay behind all the same, the worker is told to look: its
supervisor never gives away a claim of a living worker, unless it has taken the ticket.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import timedelta

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Release
from qml_mp.events.facts import ClaimFacts, ClaimReclaimed
from qml_mp.ipc.slot import Activity
from qml_mp.processing.job_records import about
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.recovery.sweep import MOST_UNAVAILABLE, each_by_itself
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.unread_replies import claims_not_read
from qml_mp.supervisor.workers.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

_SAYS_NOTHING = (Activity.BOOTING, Activity.FETCHING, Activity.FINISHING)

_TOLD_AGAIN_AFTER_S = 60.0
"""A worker looks once when it is told, and storage may refuse just then what it wants to give back."""
_GONE = Release(reason="its worker is gone", not_begun=True)

_Seen = tuple[str, ClaimKey]


class UnshownClaimsLoop(Loop):
    """Compares the claims of this server with what its workers show. A claim is acted on when two ticks
    have found it unshown; those of dead workers that are about to be settled are left alone."""

    name = "unshown claims"
    interval = timedelta(seconds=5)

    def __init__(self, run: Run, *, settling: SettleLoop) -> None:
        super().__init__(run)
        self._settling = settling
        self._suspects: set[_Seen] = set()
        self._told: dict[_Seen, float] = {}
        """When its worker was told to look for it."""

    def tick(self, storage: Storage) -> None:
        workers = {worker.worker_id: worker for worker in self._run.pool}
        claims_by_worker: dict[str, list[Claim]] = defaultdict(list)
        for claim in storage.claims_of_server(self._run.registration.id):
            claims_by_worker[claim.worker_id].append(claim)
        suspects: set[_Seen] = set()
        told_since = self._run.clock.monotonic() - _TOLD_AGAIN_AFTER_S
        untold = {seen for seen in self._suspects if self._told.get(seen, told_since) <= told_since}
        of_the_gone: dict[str, Sequence[Claim]] = {}
        for worker_id, claims in claims_by_worker.items():
            if worker_id in self._settling.unsettled_ids:
                continue
            worker = workers.get(worker_id)
            unshown = claims if worker is None else self._unshown(worker, claims)
            suspects |= {(worker_id, claim.key) for claim in unshown}
            again = [claim for claim in unshown if (worker_id, claim.key) in untold]
            if again and worker is None:
                of_the_gone[worker_id] = again
            elif again and worker is not None:
                self._ask_for(again, worker, held=[claim.key for claim in claims])
        self._suspects = suspects
        self._told = {seen: at for seen, at in self._told.items() if seen in suspects}
        # Last, since it may fail: what storage refuses of one claim keeps nothing else from its turn.
        each_by_itself(of_the_gone.items(), lambda gone: self._release(storage, *gone))

    def _unshown(self, worker: WorkerProcess, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Those that the worker cannot be seen to know of."""
        view = worker.look(self._run.clock.monotonic())
        if view.activity in _SAYS_NOTHING:
            return ()
        others = [claim for claim in claims if claim.key != view.key and claim.key not in worker.taken]
        ended = worker.channels.ended.keys() if others else frozenset()
        return [claim for claim in others if claim.key not in ended]

    def _ask_for(self, claims: Sequence[Claim], worker: WorkerProcess, *, held: Collection[ClaimKey]) -> None:
        """Have the worker look for these, but those that came with a reply so late that they were not found
        when its ticket was taken. `held` is all that storage says it has."""
        not_read = claims_not_read(worker, held)
        worker.taken |= not_read.intersection(claim.key for claim in claims)
        lost = [claim for claim in claims if claim.key not in not_read]
        if not lost or not worker.doubt():
            return
        for claim in lost:
            seen = worker.worker_id, claim.key
            if seen not in self._told:
                logger.warning(
                    "Worker %s does not show its claim of job %s; it is told to look",
                    worker.number,
                    claim.job.id,
                    extra=about(claim),
                )
            self._told[seen] = self._run.clock.monotonic()

    def _release(self, storage: Storage, worker_id: str, claims: Sequence[Claim]) -> None:
        """Of a worker of this very run that is neither alive nor waiting to be settled: it was reaped and
        settled here. Its row is gone, but for a failover of storage that has lost how it was settled: then it
        goes now, so that nothing that the worker has sent can claim a job after this."""
        storage.deregister_worker(worker_id)

        def release(claim: Claim) -> None:
            finished = storage.finish(claim, _GONE, retention=self._run.retention)
            self._run.pool.totals.add_returned(claim, finished)
            if finished.accepted:
                facts = ClaimFacts.of(claim)
                self._run.events.emit(ClaimReclaimed(claim=facts, state=finished.state))
                self._run.pool.wake_idle()

        each_by_itself(claims, release, most_unavailable=MOST_UNAVAILABLE)
