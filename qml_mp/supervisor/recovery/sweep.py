"""Supervisor: recovery of jobs that a run of a server left in Processing, judged by who owns them.

Kill before reclaim: of a dead supervisor of this host, every worker that may still run is killed
and proved dead before its job is given to another. Owners whose processes cannot be looked up from here
are judged by silence (`heartbeat`), owners of whom nothing else is known by age alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity, ServerInfo
from qml_mp.errors import StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.events.facts import JobsReclaimed
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery.giving_back import GivingBack
from qml_mp.supervisor.recovery.judging import Reading, Silences
from qml_mp.supervisor.recovery.sign_of_guardian import is_held
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for
from qml_mp.supervisor.workers.fork import kill_stranger

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")

_PROOF_IN_LOOP_S = 0.05  # the supervisor has workers to look after; it asks again at the next turn
_LOOK_EVERY_S = 0.01
LONGEST_PAUSE = timedelta(seconds=5)
"""Between kills, while a worker outlives SIGKILL: it may be another user's, whom we may not kill."""
MOST_UNAVAILABLE = 2
"""In a row, of writes that are made each by itself: each costs the supervisor its patience with storage."""
TOLD_AFTER = 4
"""Kills that changed nothing; a worker that we may kill is gone by then."""


def read_clock(storage: Storage, run: Run) -> Reading:
    """The clock of storage beside this server's own."""
    asked = run.clock.monotonic()
    now = storage.now()
    return Reading(now=now, asked=asked, told=run.clock.monotonic())


def release_stranded_jobs(
    storage: Storage,
    run: Run,
    reading: Reading,
    silences: Silences,
    *,
    spare_registered: bool,
    giving_back: GivingBack | None = None,
) -> int:
    """Give back the jobs older than `stale_processing_after` that only their age can tell of; how many.
    Older at `reading`: who registers after it has no claim as old as this.

    Their owner is in no registry; or it sends no heartbeats, and its process cannot be looked up. A
    server that sends none itself judges silent peers so, too, at its second look; `silences` are what it has
    seen before. `spare_registered`: the clock may have been set ahead since their jobs began, so no age tells
    of them. `giving_back` as for `reclaim_from_dead_neighbours`.
    """
    config, own_id = run.config, run.registration.id
    stale_before = reading.now - config.stale_processing_after
    silent: set[str] = set()
    if not config.enable_heartbeat:
        timeout = config.dead_server_timeout
        peers = storage.silent_servers(own_id=own_id, timeout=timeout)
        told = storage.told_timeouts() if peers else {}
        silent = silences.lasting(peers, reading, seen=run.clock.monotonic(), timeout=timeout, told=told)
    spared = [
        server.id
        for server in storage.list_servers()
        if spare_registered
        or (server.heartbeat_enabled and server.id not in silent)
        or is_seen_alive(storage, server)
    ]
    spared.append(own_id)
    if giving_back is None:
        count = storage.requeue_stranded_jobs(stale_before, spare_servers=spared, retention=run.retention)
    else:
        count = giving_back.requeue_stranded(storage, stale_before, spare_servers=spared)
    if count:
        run.events.emit(JobsReclaimed(jobs=count, server_id=None))
    return count


@dataclass(frozen=True, slots=True, kw_only=True)
class Reclaimed:
    """What came of one look at the dead servers of this host."""

    jobs: int
    """That are enqueued again, or have ended as was asked."""
    left: Collection[str]
    """The dead servers whose jobs nobody may have yet: a worker of theirs, or the guardian, is not done."""
    unkilled: Collection[str]
    """Those of them with a worker that lives although it was killed just now, or that cannot be told of."""


def reclaim_from_dead_neighbours(
    storage: Storage,
    run: Run,
    servers: Sequence[ServerInfo],
    *,
    leaving: Collection[str] = (),
    told: Collection[str] = (),
    giving_back: GivingBack | None = None,
    proof_s: float = _PROOF_IN_LOOP_S,
) -> Reclaimed:
    """Reclaim from those of the registered servers whose process is proved dead from here.

    A server whose workers are not proved dead within `proof_s` is left for the next time, and so is one
    whose guardian may still write what had ended in them: those jobs would run again. The workers of servers
    that are `leaving` are not killed and not waited for: they have a moment to end by themselves. Of those
    that are `told` the log has it already that their workers are killed. With `giving_back`, a job that the
    database refuses keeps no other; without, it keeps those of its server.
    """
    counts: list[int] = []
    unkilled: set[str] = set()
    left = {
        server.id
        for server in servers
        if server.id != run.registration.id and host.is_alive(server.process) is False
    }

    def reclaim(server: ServerInfo) -> None:
        workers = _workers_of(storage, server)
        if server.id in leaving:
            if any(host.is_alive(worker) is not False for worker in workers.values()):
                return
        elif not all_proved_dead(workers.values(), proof_s=proof_s, is_told=server.id in told):
            unkilled.add(server.id)
            return
        if not _guardian_is_done(server.process, proof_s=0 if server.id in leaving else proof_s):
            return
        try:
            count = _reclaim(storage, run, server.id, dead_workers=workers.keys(), giving_back=giving_back)
        except StorageUnavailable as error:
            if isinstance(error, StorageUnreachable) or _workers_of(storage, server).keys() <= workers.keys():
                raise
            return reclaim(server)  # one that was booting has registered since: it has to be dead, too
        left.discard(server.id)
        is_done = giving_back is None or server.id not in giving_back.unfinished
        if count or (is_done and server.id not in leaving):  # others see it leave in the same moment
            run.events.emit(JobsReclaimed(jobs=count, server_id=server.id))
        counts.append(count)

    each_by_itself([server for server in servers if server.id in left], reclaim)
    return Reclaimed(jobs=sum(counts), left=left, unkilled=unkilled)


def is_seen_alive(storage: Storage, server: ServerInfo) -> bool:
    """Whether its process, or one of its workers', is known to run."""
    if host.is_alive(server.process):
        return True
    return any(host.is_alive(worker) for worker in _workers_of(storage, server).values())


def all_proved_dead(
    workers: Iterable[ProcessIdentity], *, proof_s: float = _PROOF_IN_LOOP_S, is_told: bool
) -> bool:
    """Kill what lives of these workers, with their groups, and wait for the proof. They are those of a server
    whose process was seen from here, or is proved dead. `is_told`: the log has it already that they are
    killed."""
    living = [worker for worker in workers if host.is_alive(worker, is_local=True) is not False]
    for worker in living:
        if host.is_alive(worker):  # where that cannot be told, the pid may be anybody's
            level = logging.DEBUG if is_told else logging.WARNING
            logger.log(level, "Killing worker pid %s, whose supervisor is gone or does nothing", worker.pid)
            kill_stranger(worker)
    deadline = time.monotonic() + proof_s
    while living and time.monotonic() < deadline:
        wait_for([], until=time.monotonic() + _LOOK_EVERY_S)
        living = [worker for worker in living if host.is_alive(worker, is_local=True) is not False]
    return not living


def warn_of_survivors(server: ServerInfo) -> None:
    """Of kills by `all_proved_dead` that change nothing."""
    logger.warning(
        "Workers of server %s (pid %s) cannot be ended from here; are they another user's? "
        "Its jobs stay with them until they have ended",
        server.id,
        server.process.pid,
    )


def each_by_itself(
    items: Iterable[_Item], action: Callable[[_Item], object], *, most_unavailable: int | None = None
) -> None:
    """Do it for each; what storage refuses about one of them keeps no other waiting.

    The first refusal is raised when all are through; a storage that cannot be reached ends it at once. So do
    `most_unavailable` refusals in a row that are about none of them: each has waited for a lock, say, as
    the others would.
    """
    refused: StorageError | None = None
    unavailable = 0
    for item in items:
        try:
            action(item)
            unavailable = 0
        except StorageUnreachable:
            raise
        except StorageError as error:
            refused = refused or error
            unavailable = unavailable + 1 if isinstance(error, StorageUnavailable) else 0
            if unavailable == most_unavailable:
                break
    if refused is not None:
        raise refused


def _workers_of(storage: Storage, server: ServerInfo) -> dict[str, ProcessIdentity]:
    """By id, those that are registered."""
    return {each.id: each.process for each in storage.list_workers() if each.server_id == server.id}


def _reclaim(
    storage: Storage,
    run: Run,
    server_id: str,
    *,
    dead_workers: Collection[str],
    giving_back: GivingBack | None,
) -> int:
    if giving_back is not None:
        return giving_back.reclaim(storage, server_id, silent_for=None, dead_workers=dead_workers)
    return storage.reclaim_server(
        server_id, silent_for=None, dead_workers=dead_workers, retention=run.retention
    )


def _guardian_is_done(supervisor: ProcessIdentity, *, proof_s: float) -> bool:
    """Wait for the guardian of the dead supervisor, which ends soon after the workers."""
    deadline = time.monotonic() + proof_s
    while is_held(supervisor):
        if time.monotonic() >= deadline:
            return False
        wait_for([], until=time.monotonic() + _LOOK_EVERY_S)
    return True
