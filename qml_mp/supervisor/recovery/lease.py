"""Supervisor: for how long this server has been alive without a gap, by the clock of storage.

A server that was stopped, suspended or cut off must not judge its peers: their silence may be its own. So
it judges them only after it has sent heartbeats for as long as it lets them be silent.
"""

from __future__ import annotations

from datetime import datetime, timedelta


class Lease:
    """Pure: told of each heartbeat, it answers whether peers may be judged by their silence."""

    def __init__(
        self, *, interval: timedelta, timeout: timedelta, longest_gap: timedelta | None = None
    ) -> None:
        """`interval` lies between heartbeats; `timeout` is the silence after which a peer counts as dead.
        A longer time than `longest_gap` between two heartbeats is a gap; by default there is room for a
        late one, and for peers that wake later."""
        self.timeout = timeout
        self._longest_gap = (interval + timeout) / 2 if longest_gap is None else longest_gap
        self._since: datetime | None = None
        self._newest: datetime | None = None

    def renew(self, now: datetime) -> None:
        """A heartbeat was written at `now`. A gap since the one before, and a clock that went back,
        begin the lease anew."""
        gapless = self._newest is not None and timedelta() <= now - self._newest <= self._longest_gap
        if not gapless:
            self._since = now
        self._newest = now

    @property
    def is_old_enough(self) -> bool:
        """Whether it has lasted for the whole timeout."""
        return self.remaining == timedelta()

    @property
    def remaining(self) -> timedelta:
        """How much longer it has to last until then, at the newest heartbeat."""
        if self._since is None or self._newest is None:
            return self.timeout
        return max(self.timeout - (self._newest - self._since), timedelta())
