"""Supervisor: the neighbour loop: reclaims from servers of this machine that died, and from nobody's jobs."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.events.emitter import Emitter
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.supervisor.loops.heartbeat import go_on_as_another
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.recovery.sweep import reclaim_from_dead_neighbours, release_stranded_jobs
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.workers.pool import WorkerPool

_INTERVAL = timedelta(seconds=5)


class NeighbourLoop(Loop):
    """Looks for supervisors of this very host that died: the process table tells, without any timeout.
    For jobs whose owners nothing tells of. And for the own row, which a server without heartbeats
    (`judging` is None) would not miss otherwise."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        judging: Judging | None,
        registration: ServerRegistration,
        pool: WorkerPool,
        events: Emitter,
    ) -> None:
        super().__init__("neighbour", interval=_INTERVAL)
        self._config = config
        self._judging = judging
        self._registration = registration
        self._pool = pool
        self._events = events

    def tick(self, storage: Storage) -> None:
        if self._registration.id not in {server.id for server in storage.list_servers()}:
            go_on_as_another(storage, self._registration, self._pool)
        own_id, events = self._registration.id, self._events
        recovered = reclaim_from_dead_neighbours(
            storage, own_id=own_id, retention=Retention.of(self._config), events=events
        )
        if self._judging is None or self._judging.may_judge_by_age:
            recovered += release_stranded_jobs(storage, self._config, own_id=own_id, events=events)
        if recovered:
            self._pool.wake_idle()
