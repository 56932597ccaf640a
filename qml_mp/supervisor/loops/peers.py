"""Supervisor: other servers: it says that it lives, and reclaims from those that do not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import timedelta

from qml_mp import host
from qml_mp.core.server_info import ServerInfo
from qml_mp.events.facts import JobsReclaimed
from qml_mp.processing.cancel import CancelReason
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import AT_ONCE, Loop
from qml_mp.supervisor.recovery.frozen import FrozenPeers
from qml_mp.supervisor.recovery.giving_back import GivingBack
from qml_mp.supervisor.recovery.judging import Judging, Reading, Silences
from qml_mp.supervisor.recovery.neighbours import LOOK_AGAIN, Neighbours
from qml_mp.supervisor.recovery.sweep import (
    LONGEST_PAUSE,
    TOLD_AFTER,
    each_by_itself,
    is_seen_alive,
    read_clock,
    reclaim_from_dead_neighbours,
    release_stranded_jobs,
    warn_of_survivors,
)
from qml_mp.supervisor.run import Run
from qml_mp.units import doubled

_RSS_STEP_BYTES = 1 << 20  # smaller changes of a worker's memory are not worth a write
_AFTER_A_KILL = timedelta(seconds=1)
"""That has not ended a worker in the time which a turn has for it; doubled at each further one."""
_LOOKS_AT_AGES = 10  # while a job comes to the age at which it is taken for stranded


class HeartbeatLoop(Loop):
    """Bumps the own row with the workers' memory, then reclaims from peers that have been silent, once
    this server has itself sent heartbeats for as long without a gap."""

    name = "heartbeat"

    def __init__(self, run: Run, *, judging: Judging, on_asked: Callable[[], None] = lambda: None) -> None:
        """`on_asked` is called when the beat finds that something is asked of this server."""
        super().__init__(run, interval=judging.beat)
        self._on_asked = on_asked
        self._judging = judging
        self._silences = Silences()
        self._frozen = FrozenPeers()
        self._giving_back = GivingBack(run)
        self._told_rss: dict[str, int] = {}
        """What stands in the rows of the workers."""

    def tick(self, storage: Storage) -> timedelta | None:
        rss = {worker.worker_id: host.rss_bytes(worker.child.pid) or 0 for worker in self._run.pool}
        changed = {each: size for each, size in rss.items() if self._is_news(each, size)}
        began = self._run.clock.monotonic()
        heard = storage.heartbeat_server(self._run.registration.id, worker_rss=changed)
        self._run.registration.note_heard(began=began)
        if heard is None:
            _go_on_as_another(storage, self._run)
            return None
        self._run.registration.has_row = True
        if heard.is_asked:
            self._on_asked()
        self._told_rss = {each: size for each, size in (self._told_rss | changed).items() if each in rss}
        reading = read_clock(storage, self._run)
        self._judging.renew(reading)
        sooner = self._judge_peers(storage, reading) if heard.servers > 1 else None
        if self._giving_back.unfinished:
            registered = {server.id for server in storage.list_servers()}
            _give_back_rest(storage, self._run, self._giving_back, registered, was_silent=True)
        return sooner

    def _judge_peers(self, storage: Storage, reading: Reading) -> timedelta | None:
        """In how long to look at them again, if not at the next beat."""
        # Those too that will have been silent for long enough before the next beat.
        soon = max(timedelta(), self._judging.shortest_silence - self._judging.beat)
        peers = storage.silent_servers(own_id=self._run.registration.id, timeout=soon)
        silences = self._silences.look(peers, reading, seen=self._run.clock.monotonic())
        told = storage.told_timeouts() if peers else {}
        not_yet: list[timedelta] = []

        def judge(peer: ServerInfo) -> None:
            sooner = self._judge(storage, peer, silences[peer.id], told.get(peer.id))
            not_yet.append(sooner or self._judging.beat)

        each_by_itself(peers, judge)
        return min(not_yet, default=None)

    def _judge(
        self, storage: Storage, peer: ServerInfo, silence: timedelta, told: timedelta | None
    ) -> timedelta | None:
        """Reclaim from it if it counts as dead, be it by a longer timeout that it has told; in how long to
        look at it again, if not at the next beat."""
        is_frozen = host.is_alive(peer.process)
        if not is_frozen and is_seen_alive(storage, peer):
            return None  # the process table knows better, and `NeighbourLoop` asks it
        lease = self._judging.lease_of_frozen if is_frozen else self._judging.lease_for(peer.process)
        silent_for = lease.timeout_of(told)
        too_early = max(lease.remaining(silent_for), silent_for - silence)
        if too_early > timedelta():
            return too_early
        dead_workers: Collection[str] | None = None
        if is_frozen:
            ended = self._frozen.end_workers(storage, peer)
            if isinstance(ended, timedelta):
                return ended
            dead_workers = ended
        self._reclaim(storage, peer, silent_for=silent_for, dead_workers=dead_workers)
        return None

    def _is_news(self, worker_id: str, rss_bytes: int) -> bool:
        told = self._told_rss.get(worker_id)
        return told is None or abs(rss_bytes - told) >= _RSS_STEP_BYTES

    def _reclaim(
        self,
        storage: Storage,
        peer: ServerInfo,
        *,
        silent_for: timedelta,
        dead_workers: Collection[str] | None,
    ) -> None:
        count = self._giving_back.reclaim(
            storage,
            peer.id,
            silent_for=silent_for,
            newest=peer.last_heartbeat,
            judge=self._run.registration.id,
            dead_workers=dead_workers,
        )
        _note_reclaimed(self._run, peer.id, count, was_silent=True)


class NeighbourLoop(Loop):
    """Looks for supervisors of this very host that died: the process table tells, without any timeout, and at
    once where a pidfd does. For jobs that only their age can tell of. And for the own row, because a server
    without heartbeats (`judging` is None) does not see otherwise that it is gone."""

    name = "neighbour"
    interval = timedelta(seconds=5)

    def __init__(self, run: Run, *, judging: Judging | None, neighbours: Neighbours) -> None:
        super().__init__(run)
        self._judging = judging
        self._neighbours = neighbours
        self._silences = Silences()
        self._giving_back = GivingBack(run)
        self._kills: dict[str, int] = {}
        """Of the dead servers with workers that live all the same, how often these were killed."""
        self._look_at_ages_at = 0.0
        self._last_look: Reading | None = None
        self._no_step_since = 0.0
        """Of the clock of storage, ahead, as far as this server knows."""

    def due_at(self) -> float:
        return AT_ONCE if self._neighbours.has_news else super().due_at()

    def tick(self, storage: Storage) -> timedelta | None:
        servers = storage.list_servers()
        if self._run.registration.id in {server.id for server in servers}:
            self._run.registration.has_row = True
        else:
            _go_on_as_another(storage, self._run)
        self._neighbours.watch(servers)
        leaving = self._neighbours.leaving()
        # One that dies just now is judged once that is told, or its workers would be killed without a grace.
        others = [each for each in servers if not self._neighbours.waits_for(each.id)]
        reclaimed = reclaim_from_dead_neighbours(
            storage,
            self._run,
            others,
            leaving=leaving,
            told=self._kills.keys(),
            giving_back=self._giving_back,
        )
        self._note_kills(reclaimed.unkilled, servers)
        if reclaimed.jobs + self._release_stranded_jobs(storage):
            self._run.pool.wake_idle()
        self._neighbours.tell(reclaimed.left)
        registered = {server.id for server in servers}
        _give_back_rest(storage, self._run, self._giving_back, registered, was_silent=False)
        if not reclaimed.left:
            return self._giving_back.next_in
        if leaving:
            return LOOK_AGAIN
        fewest = min(self._kills.get(each, 1) for each in reclaimed.left)
        return doubled(_AFTER_A_KILL, fewest - 1, longest=LONGEST_PAUSE)

    def _note_kills(self, unkilled: Collection[str], servers: Iterable[ServerInfo]) -> None:
        self._kills = {each: self._kills.get(each, 0) + 1 for each in unkilled}
        for server in servers:
            if self._kills.get(server.id) == TOLD_AFTER:
                warn_of_survivors(server)

    def _release_stranded_jobs(self, storage: Storage) -> int:
        """Less often the older they have to be. A step ahead of the clock, which may have come before this
        server as well, makes all of them look older: those of registered servers have to become as old."""
        now = self._run.clock.monotonic()
        if now < self._look_at_ages_at:
            return 0
        stale_after_s = self._run.config.stale_processing_after.total_seconds()
        reading = read_clock(storage, self._run)
        before, self._last_look = self._last_look, reading
        if before is None or reading.is_ahead_of(before):
            self._no_step_since = now
        if self._judging is not None and not self._judging.may_judge_by_age:
            return 0
        self._look_at_ages_at = now + stale_after_s / _LOOKS_AT_AGES
        return release_stranded_jobs(
            storage,
            self._run,
            reading,
            self._silences,
            spare_registered=now - self._no_step_since < stale_after_s,
            giving_back=self._giving_back,
        )


def _give_back_rest(
    storage: Storage, run: Run, giving_back: GivingBack, registered: Collection[str], *, was_silent: bool
) -> None:
    """What was refused, of servers that are in no registry any more: their silence has cost them their rows,
    or somebody else has given back what was left. One that is in it is judged like all others."""

    def reclaim(server_id: str) -> None:
        count = giving_back.reclaim(storage, server_id, silent_for=None)
        _note_reclaimed(run, server_id, count, was_silent=was_silent)

    each_by_itself([each for each in giving_back.unfinished if each not in registered], reclaim)


def _note_reclaimed(run: Run, server_id: str, count: int, *, was_silent: bool) -> None:
    if count:
        run.events.emit(JobsReclaimed(jobs=count, server_id=server_id, was_silent=was_silent))
        run.pool.wake_idle()


def _go_on_as_another(storage: Storage, run: Run) -> None:
    """The own row is gone: a peer has declared this server dead and given its jobs to others. So end them
    here, and go on under a new id: one, however often its row has to be tried."""
    run.pool.kill_all(CancelReason.ORPHANED)
    if run.registration.has_row:
        run.pool.rename(run.registration.renew_id())
    run.registration.register(storage)
