"""Supervisor: the heartbeat loop: says that this server lives, and reclaims from those that do not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta

from qml_mp import host
from qml_mp.core.server_info import ServerInfo
from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Retention, Storage
from qml_mp.supervisor.loops.loop import Tick
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.recovery.sweep import (
    is_seen_alive,
    reclaim_from_dead_neighbours,
    release_stranded_jobs,
)
from qml_mp.supervisor.retrying import each_by_itself

logger = logging.getLogger(__name__)

_NEIGHBOUR_INTERVAL = timedelta(seconds=5)


def heartbeat_tick(
    config: ServerConfig,
    *,
    judging: Judging,
    own_id: Callable[[], str],
    worker_pids: Callable[[], Mapping[str, int]],
    declared_dead: Callable[[], None],
    wake: Callable[[], None],
) -> Tick:
    """Bumps the own row with the workers' memory, then reclaims from peers that have been silent, once
    this server has itself been heard for as long without a gap.

    `declared_dead` is called when the own row is gone: a peer has given our jobs to others.
    """

    def beat(storage: Storage) -> timedelta | None:
        rss = {worker_id: host.rss_bytes(pid) or 0 for worker_id, pid in worker_pids().items()}
        if not storage.heartbeat_server(own_id(), worker_rss=rss):
            logger.error("A peer declared this server dead; its jobs are others' now")
            declared_dead()
            return None
        judging.renew(storage.now())
        not_yet: list[timedelta] = []

        def judge(peer: ServerInfo) -> None:
            if is_seen_alive(storage, peer):
                return  # the process table knows better, and the neighbour loop asks it
            lease = judging.lease_for(peer.process)
            if not lease.is_old_enough:
                not_yet.append(lease.remaining)
                return
            count = storage.reclaim_server(
                peer.id, silent_for=lease.timeout, judge=own_id(), retention=Retention.of(config)
            )
            if count:
                logger.warning("Server %s is silent; jobs of it that are enqueued again: %s", peer.id, count)
                wake()

        each_by_itself(storage.silent_servers(own_id=own_id(), timeout=judging.shortest_silence), judge)
        return min(not_yet, default=None)

    return Tick(name="heartbeat", interval=judging.beat, body=beat)


def neighbour_tick(
    config: ServerConfig,
    *,
    judging: Judging | None,
    own_id: Callable[[], str],
    declared_dead: Callable[[], None],
    wake: Callable[[], None],
) -> Tick:
    """Looks for supervisors of this very host that died: the process table tells, without any timeout.
    For jobs whose owners nothing tells of. And for the own row, which a server without heartbeats
    (`judging` is None) would not miss otherwise."""

    def look(storage: Storage) -> None:
        if own_id() not in {server.id for server in storage.list_servers()}:
            logger.error("A peer declared this server dead; its jobs are others' now")
            declared_dead()
        recovered = reclaim_from_dead_neighbours(storage, own_id=own_id(), retention=Retention.of(config))
        if judging is None or judging.may_judge_by_age:
            recovered += release_stranded_jobs(
                storage, config, own_id=own_id(), hears_peers=judging is not None
            )
        if recovered:
            wake()

    return Tick(name="neighbour", interval=_NEIGHBOUR_INTERVAL, body=look)
