"""Supervisor: how long others may be silent before this server takes them for dead.

Only silence tells of a server whose process cannot be looked up from here: one on another machine,
in another pid namespace, behind a /proc that hides it, or from before a reboot. Where all servers are
on one machine (SQLite), heartbeats are frequent, and a short silence is enough to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity, ServerInfo
from qml_mp.settings import ServerConfig

_BEATS_IN_A_SILENCE = 6
"""Or more. The gap that a lease allows and one beat of the peer are then three quarters of the silence at
most: when storage answers again, a living peer has the rest of it for its next try. And a lease always
allows a gap that is longer than a beat."""
_NEXT_TRY = timedelta(seconds=2)
"""After an outage, a living peer has tried again to send a heartbeat by then."""
_BEAT_ON_ONE_MACHINE = timedelta(seconds=2)
_BEATS_MISSED = 4
"""After so many, where beats are frequent: a writer that holds the file for the length of the gap which
the lease allows delays a living server's beat by less, the pauses between its tries included."""
_GAP_SHARE = 3 / 8  # of the silence; on one machine both wait for the same disk and the same lock
_SLEWED = 0.1  # of the time that passes: a clock which is adjusted by less is not set
_NO_STEP_S = 0.5


def orphan_grace_of(config: ServerConfig) -> timedelta:
    """How long busy workers may outlive their supervisor: not until servers that cannot see them run their
    jobs. A sixth of that silence may be over when it dies, and one is left to end them."""
    return min(config.orphan_grace, config.dead_server_timeout * 2 / 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the clock of storage said, and between which instants of the monotonic clock it was asked."""

    now: datetime
    asked: float
    told: float

    def is_behind(self, before: Reading) -> bool:
        """Whether the clock of storage was set back since then. A slow reply is no step."""
        passed_s = (self.now - before.now).total_seconds()
        return passed_s < max(0.0, (self.asked - before.told) * (1 - _SLEWED) - _NO_STEP_S)

    def is_ahead_of(self, before: Reading) -> bool:
        """Whether it was set ahead since then, or this server's machine has slept."""
        passed_s = (self.now - before.now).total_seconds()
        return passed_s > (self.told - before.asked) * (1 + _SLEWED) + _NO_STEP_S


class Judging:
    """How a server judges its peers. Owned by the heartbeat loop, which tells it of each beat."""

    def __init__(self, config: ServerConfig, *, on_one_machine: bool) -> None:
        self._on_one_machine = on_one_machine
        self.beat = min(config.heartbeat_interval, config.dead_server_timeout / _BEATS_IN_A_SILENCE)
        timeout = config.dead_server_timeout
        if not on_one_machine:
            self._lease = Lease(interval=self.beat, timeout=timeout)
            self._short_lease = self.lease_of_frozen = self._lease
            return
        self.beat = min(_BEAT_ON_ONE_MACHINE, self.beat)
        # The workers of a dead supervisor are gone by then, although nothing shows it.
        shortest = max(_BEATS_MISSED * _BEAT_ON_ONE_MACHINE, config.orphan_grace + _BEAT_ON_ONE_MACHINE)
        # Silent for so long, all its claims are as old.
        longest = max(shortest, config.stale_processing_after)
        self._lease = self._new_lease(timeout, enough=longest)
        self._short_lease = self._new_lease(timeout, enough=shortest)
        self.lease_of_frozen = self._new_lease(timeout)
        """What this server needs to judge a silent one whose process it sees running."""

    @property
    def shortest_silence(self) -> timedelta:
        """No peer is judged before."""
        return self._short_lease.timeout

    @property
    def may_judge_by_age(self) -> bool:
        """Whether this server has run without a gap for long enough to judge claims by their age."""
        return self._lease.is_old_enough

    def renew(self, reading: Reading) -> None:
        """This server's own heartbeat was written then."""
        for lease in {self._lease, self._short_lease, self.lease_of_frozen}:
            lease.renew(reading)

    def lease_for(self, peer: ProcessIdentity) -> Lease:
        """What this server needs to judge this peer."""
        if self._on_one_machine and host.is_of_another_boot(peer):
            return self._short_lease  # its kernel is gone, unless the machine gives each container a boot
        return self._lease

    def _new_lease(self, timeout: timedelta, *, enough: timedelta = timedelta.max) -> Lease:
        silence = min(timeout, enough)
        return Lease(interval=self.beat, timeout=silence, enough=enough, longest_gap=silence * _GAP_SHARE)


class Lease:
    """Pure: for how long this server has been alive without a gap, by the clock of storage.

    A server that was stopped, suspended or cut off must not judge its peers: their silence may be its own. So
    it judges them only after it has sent heartbeats for as long as it lets them be silent.
    """

    def __init__(
        self,
        *,
        interval: timedelta,
        timeout: timedelta,
        enough: timedelta = timedelta.max,
        longest_gap: timedelta | None = None,
    ) -> None:
        """`interval` lies between heartbeats; `timeout` is the silence after which a peer counts as dead,
        `enough` that after which each does, however long its own timeout is. A longer time than `longest_gap`
        between two heartbeats is a gap; by default there is room for a late one, and for peers that wake
        later."""
        self.timeout = timeout
        self._enough = enough
        self._longest_gap = (interval + timeout) / 2 if longest_gap is None else longest_gap
        self._since: datetime | None = None
        self._newest: Reading | None = None

    def renew(self, reading: Reading) -> None:
        """A heartbeat was written then. A gap since the one before, and a clock that was set back since,
        begin the lease anew."""
        before, self._newest = self._newest, reading
        if before is None or reading.is_behind(before) or reading.now - before.now > self._longest_gap:
            self._since = reading.now

    @property
    def is_old_enough(self) -> bool:
        """Whether it has lasted for the whole timeout."""
        return self.remaining(self.timeout) == timedelta()

    def remaining(self, timeout: timedelta) -> timedelta:
        """How much longer it has to last until it has lasted for so long, at the newest heartbeat."""
        if self._since is None or self._newest is None:
            return timeout
        return max(timeout - (self._newest.now - self._since), timedelta())

    def timeout_of(self, told: timedelta | None) -> timedelta:
        """The silence that proves the death of a peer which has told this timeout of its own, or none."""
        return self.timeout if told is None else max(self.timeout, min(told, self._enough))


class Silences:
    """Pure: for how long peers have been silent, as far as this server can tell.

    A heartbeat that lies in the future, by the clock of storage, does not tell how old it is: that clock was
    set back since, or the heartbeat came in while this server looked. A peer that lives sends another one
    soon. So there counts for how long this server has seen the very same one, by its own clock.
    """

    def __init__(self) -> None:
        self._first_seen: dict[str, tuple[datetime, float]] = {}
        """Of those in the future: which, and since when."""
        self._silent_since: dict[str, tuple[datetime, float]] = {}
        """Of those that are silent for too long: after which heartbeat, and when this server found it so."""

    def look(self, peers: Iterable[ServerInfo], reading: Reading, *, seen: float) -> Mapping[str, timedelta]:
        """The silence of each of these, by id. They are all whose heartbeat may be in the future, and were
        read after `reading` and before `seen`, an instant of the monotonic clock."""
        known, self._first_seen = self._first_seen, {}
        silences = {}
        for peer in peers:
            silences[peer.id] = reading.now - peer.last_heartbeat
            if silences[peer.id] < timedelta():
                heartbeat, since = known.get(peer.id, (None, seen))
                first_seen = since if heartbeat == peer.last_heartbeat else seen
                self._first_seen[peer.id] = (peer.last_heartbeat, first_seen)
                # Nothing after the reading counts: this server may have been stopped between the two.
                silences[peer.id] = timedelta(seconds=max(0.0, reading.told - first_seen))
        return silences

    def lasting(
        self,
        peers: Iterable[ServerInfo],
        reading: Reading,
        *,
        seen: float,
        timeout: timedelta,
        told: Mapping[str, timedelta],
    ) -> set[str]:
        """Those of these, by id, that are silent for `timeout`, or the longer one that they have told, as in
        `look`, and were so at a look before, since when one that lives would have been heard. For a server
        that has no lease: after an outage of storage, or a sleep of all, it may look before its peers send
        their next heartbeats."""
        peers = list(peers)
        silences = self.look(peers, reading, seen=seen)
        known, self._silent_since = self._silent_since, {}
        lasting = set()
        for peer in peers:
            longest = max(timeout, told.get(peer.id, timeout))
            if silences[peer.id] < longest:
                continue
            next_beat_s = (longest / _BEATS_IN_A_SILENCE + _NEXT_TRY).total_seconds()
            heartbeat, since = known.get(peer.id, (None, seen))
            found_at = since if heartbeat == peer.last_heartbeat else seen
            self._silent_since[peer.id] = (peer.last_heartbeat, found_at)
            if reading.told - found_at >= next_beat_s:
                lasting.add(peer.id)
        return lasting
