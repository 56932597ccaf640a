"""Supervisor: the heartbeat loop: says that this server lives, and reclaims from peers that are silent."""

from __future__ import annotations

from datetime import timedelta

from qml_mp import host
from qml_mp.core.server_info import ServerInfo
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import JobsReclaimed
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Retention
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.recovery.sweep import each_by_itself, is_seen_alive
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.workers.pool import WorkerPool


class HeartbeatLoop(Loop):
    """Bumps the own row with the workers' memory, then reclaims from peers that have been silent, once
    this server has itself been heard for as long without a gap."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        judging: Judging,
        registration: ServerRegistration,
        pool: WorkerPool,
        events: Emitter,
    ) -> None:
        super().__init__("heartbeat", interval=judging.beat)
        self._retention = Retention.of(config)
        self._judging = judging
        self._registration = registration
        self._pool = pool
        self._events = events

    def tick(self, storage: Storage) -> timedelta | None:
        rss = {worker.worker_id: host.rss_bytes(worker.child.pid) or 0 for worker in self._pool}
        if not storage.heartbeat_server(self._registration.id, worker_rss=rss):
            go_on_as_another(storage, self._registration, self._pool)
            return None
        self._judging.renew(storage.now())
        not_yet: list[timedelta] = []

        def judge(peer: ServerInfo) -> None:
            if is_seen_alive(storage, peer):
                return  # the process table knows better, and the neighbour loop asks it
            lease = self._judging.lease_for(peer.process)
            if lease.is_old_enough:
                self._reclaim(storage, peer, silent_for=lease.timeout)
            else:
                not_yet.append(lease.remaining)

        silent = storage.silent_servers(own_id=self._registration.id, timeout=self._judging.shortest_silence)
        each_by_itself(silent, judge)
        return min(not_yet, default=None)

    def _reclaim(self, storage: Storage, peer: ServerInfo, *, silent_for: timedelta) -> None:
        count = storage.reclaim_server(
            peer.id, silent_for=silent_for, judge=self._registration.id, retention=self._retention
        )
        if count:
            self._events.emit(JobsReclaimed(jobs=count, server_id=peer.id, was_silent=True))
            self._pool.wake_idle()


def go_on_as_another(storage: Storage, registration: ServerRegistration, pool: WorkerPool) -> None:
    """The own row is gone: a peer has declared this server dead and given its jobs to others. So end them
    here, and go on under a new id."""
    pool.kill_all(CancelReason.ORPHANED)
    pool.rename(registration.renew_id())
    registration.register(storage)
