"""Supervisor: sees at once that another supervisor of this very host has died: it waits for their pidfds.

Where there are none (not Linux, another pid namespace, a hidden /proc) a look now and then, or the silence of
the dead one, tells the same later.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable
from datetime import timedelta

from qml_mp import host
from qml_mp.core.server_info import ServerInfo
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.recovery.judging import orphan_grace_of
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for
from qml_mp.supervisor.workers.fork import pidfd_of
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_MOST = 8
"""That one server waits for: each costs a descriptor."""
LOOK_AGAIN = timedelta(seconds=0.05)
"""At a dead one whose workers may still end by themselves."""


class Neighbours(Part):
    """The supervisors of this host whose end this one waits for, and those that it saw die."""

    def __init__(self, run: Run) -> None:
        self._registration = run.registration
        self._clock = run.clock
        self._grace = orphan_grace_of(run.config)
        self._fds: dict[str, int] = {}
        self._died_at: dict[str, float] = {}
        self._told: set[str] = set()
        self.has_news = False
        """Whether one has died since the last call of `watch`."""

    def fds(self) -> Collection[int]:
        return self._fds.values()

    def turn(self) -> None:
        if not self._fds:
            return
        dead = wait_for(self._fds.values(), until=0)
        for server_id in [each for each, fd in self._fds.items() if fd in dead]:
            os.close(self._fds.pop(server_id))
            self._died_at[server_id] = self._clock.monotonic()
            self.has_news = True

    def watch(self, servers: Iterable[ServerInfo]) -> None:
        """These are registered now: wait for the end of those that are seen from here."""
        self.has_news = False
        rows, own_id = {server.id: server for server in servers}, self._registration.id
        rows.pop(own_id, None)
        self._died_at = {each: at for each, at in self._died_at.items() if each in rows}
        for server_id in self._fds.keys() - rows.keys():
            os.close(self._fds.pop(server_id))
        # Beginning after the own id: so that of very many, none is forgotten by all.
        for server_id in sorted(rows.keys() - self._fds.keys(), key=lambda each: (each < own_id, each)):
            if server_id not in self._died_at:
                self._look_at(rows[server_id])

    def waits_for(self, server_id: str) -> bool:
        """Whether its end is still to be told, and its workers are to have a grace from then on."""
        return server_id in self._fds

    def leaving(self) -> set[str]:
        """Those whose workers have a grace: they write what ends in it, as if nobody were beside them."""
        began_after = self._clock.monotonic() - self._grace.total_seconds()
        return {each for each, died_at in self._died_at.items() if died_at > began_after}

    def tell(self, left: Collection[str]) -> None:
        """The workers of these have not ended yet; said once of each."""
        for server_id in (self._died_at.keys() & left) - self._told:
            logger.warning(
                "Server %s of this host is dead; its workers may end what they have in hand within %s",
                server_id,
                format_duration(self._grace),
            )
        self._told = set(left)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _look_at(self, server: ServerInfo) -> None:
        fd = pidfd_of(server.process.pid) if len(self._fds) < _MOST else None
        is_alive = host.is_alive(server.process)  # asked after, so that the pidfd is its own
        if is_alive is False:
            self._died_at[server.id] = self._clock.monotonic()
        if fd is not None and is_alive:
            self._fds[server.id] = fd
        elif fd is not None:
            os.close(fd)
