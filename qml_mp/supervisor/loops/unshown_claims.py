"""Supervisor: the back-stop of the claims: what a living worker holds, its slot shows sooner or later.

A claim that came with a lost reply is found by the worker itself, which is in doubt from then on. Should
one stay behind all the same, the worker is told to look. Its supervisor never gives away a claim of a
living worker.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import timedelta

from qml_mp.core.job import Claim, ClaimKey
from qml_mp.core.outcome import Release
from qml_mp.ipc.slot import Activity
from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Retention, Storage
from qml_mp.supervisor.loops.loop import Tick
from qml_mp.supervisor.workers.pool import Fleet
from qml_mp.supervisor.workers.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

_INTERVAL = timedelta(seconds=5)
_SAYS_NOTHING = (Activity.BOOTING, Activity.FETCHING, Activity.FINISHING)

_Seen = tuple[str, ClaimKey]


def unshown_tick(
    config: ServerConfig,
    *,
    own_id: Callable[[], str],
    fleet: Fleet,
    unsettled: Callable[[], Collection[str]],
    wake: Callable[[], None],
) -> Tick:
    """Compares the claims of this server with the slots of its workers. A claim is acted on when two looks
    have found it unshown. `unsettled` are the dead workers whose claims are about to be settled."""
    suspects: set[_Seen] = set()
    told: set[_Seen] = set()

    def look(storage: Storage) -> None:
        workers = {member.worker_id: member for member in fleet}
        unshown: set[_Seen] = set()
        for claim in storage.claims_of_server(own_id()):
            member, seen = workers.get(claim.worker_id), (claim.worker_id, claim.key)
            if claim.worker_id in unsettled() or (member is not None and _may_know(member, claim)):
                continue
            unshown.add(seen)
            if seen not in suspects or seen in told:
                continue
            if member is None:
                _release(storage, claim, config, wake)
            elif member.doubt():
                told.add(seen)
                logger.warning(
                    "Worker %s does not show its claim of job %s; it is told to look",
                    member.number,
                    claim.job.id,
                    extra={"job_id": claim.job.id, "worker_id": claim.worker_id},
                )
        suspects.clear()
        suspects.update(unshown)
        told.intersection_update(unshown)

    return Tick(name="unshown claims", interval=_INTERVAL, body=look)


def _may_know(member: WorkerProcess, claim: Claim) -> bool:
    view = member.look()
    return view.activity in _SAYS_NOTHING or view.key == claim.key


def _release(storage: Storage, claim: Claim, config: ServerConfig, wake: Callable[[], None]) -> None:
    """Of a worker that is neither alive nor waiting to be settled: proved by its row, which is gone."""
    if claim.worker_id in {worker.id for worker in storage.list_workers()}:
        return
    finished = storage.finish(claim, Release(reason="its worker is gone"), retention=Retention.of(config))
    if finished.accepted:
        logger.warning(
            "Job %s of worker %s, which is gone, is %s",
            claim.job.id,
            claim.worker_id,
            finished.state,
            extra={"job_id": claim.job.id, "worker_id": claim.worker_id},
        )
        wake()
