"""Client and web process: whether a registered server lives, as far as it can be known from here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from qml_mp.core.server_info import ServerInfo
from qml_mp.host import is_alive
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.units import format_duration

# Of a server that has not told its settings, as an older version does not.
_SILENT_AFTER = ServerConfig().dead_server_timeout
_SILENT_AFTER_ON_ONE_MACHINE = timedelta(seconds=10)  # where servers send a heartbeat every two seconds
_CLOCK_STEP = timedelta(seconds=2)


class Standing(StrEnum):
    """What is known of a server."""

    ALIVE = "alive"
    """Its process runs on this machine."""
    DEAD = "dead"
    """Its process is proved gone."""
    NOT_KNOWN = "not_known"
    """Its process cannot be looked up from here. It was heard lately, or it sends no heartbeats."""
    SILENT = "silent"
    """Its process cannot be looked up from here, and its heartbeats have stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """What is known of a server, and since when it was not heard."""

    standing: Standing
    silent_for: timedelta | None
    """Since its last heartbeat; None: it sends none. Negative after the clock was set back."""

    @property
    def is_likely(self) -> bool:
        """Whether its process is seen, or it was heard lately."""
        heard = self.standing is Standing.NOT_KNOWN and self.silent_for is not None
        return heard or self.standing is Standing.ALIVE

    is_overdue: bool = False
    """Whether its heartbeats have stopped, whatever is known of its process."""

    @property
    def last_heard(self) -> str:
        """For people; of one that sends heartbeats."""
        silent_s = 0 if self.silent_for is None else max(0, round(self.silent_for.total_seconds()))
        return f"last heard {format_duration(timedelta(seconds=silent_s))} ago"

    def __str__(self) -> str:
        """For people: what is known, and what it rests on when that is only heartbeats."""
        if self.standing not in (Standing.NOT_KNOWN, Standing.SILENT):
            return str(self.standing)
        known = self.standing.replace("_", " ")
        if self.silent_for is None:
            return f"{known} (sends no heartbeats)"
        if self.silent_for < -_CLOCK_STEP:
            return f"{known} (not heard since the clock was set back)"
        return f"{known} ({self.last_heard})"


def liveness_by_server(
    storage: Storage, servers: Sequence[ServerInfo], *, now: datetime
) -> Mapping[str, Liveness]:
    """Of each of these, by id; `now` is the storage's clock, asked after they were read."""
    told = storage.told_timeouts() if servers else {}
    default = _SILENT_AFTER_ON_ONE_MACHINE if storage.is_on_one_machine else _SILENT_AFTER
    return {each.id: _liveness_of(each, now=now, limit=told.get(each.id, default)) for each in servers}


def _liveness_of(server: ServerInfo, *, now: datetime, limit: timedelta) -> Liveness:
    """What the process table of this machine and its last heartbeat tell."""
    silent_for = now - server.last_heartbeat if server.heartbeat_enabled else None
    lately = silent_for is None or -_CLOCK_STEP <= silent_for <= limit
    match is_alive(server.process):
        case True:
            standing = Standing.ALIVE
        case False:
            standing = Standing.DEAD
        case None:
            standing = Standing.NOT_KNOWN if lately else Standing.SILENT
    return Liveness(standing=standing, silent_for=silent_for, is_overdue=not lately)
