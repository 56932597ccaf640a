"""Supervisor: the neighbour loop: reclaims from servers of this machine that died, and jobs of no server."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.heartbeat import go_on_as_another
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.recovery.sweep import reclaim_from_dead_neighbours, release_stranded_jobs
from qml_mp.supervisor.run import Run

_INTERVAL = timedelta(seconds=5)


class NeighbourLoop(Loop):
    """Looks for supervisors of this very host that died: the process table tells, without any timeout. For
    jobs that only their age can tell of. And for the own row, because a server without heartbeats
    (`judging` is None) does not see otherwise that it is gone."""

    def __init__(self, run: Run, *, judging: Judging | None) -> None:
        super().__init__("neighbour", interval=_INTERVAL)
        self._run = run
        self._judging = judging

    def tick(self, storage: Storage) -> None:
        if self._run.registration.id not in {server.id for server in storage.list_servers()}:
            go_on_as_another(storage, self._run)
        recovered = reclaim_from_dead_neighbours(storage, self._run)
        if self._judging is None or self._judging.may_judge_by_age:
            recovered += release_stranded_jobs(storage, self._run)
        if recovered:
            self._run.pool.wake_idle()
