"""Supervisor: what the registry says of this run of the server."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from qml_mp import host
from qml_mp.core.ids import new_server_id
from qml_mp.core.server_info import ServerInfo
from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.loops.loop import NEVER, Tick
from qml_mp.supervisor.recovery.judging import Judging

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfDescription:
    """What a server says of itself, and may change between start and end."""

    queues: tuple[str, ...]
    methods: tuple[str, ...] | None
    paused: bool = False
    trouble: str | None = None


def in_short(what: str, traceback: str) -> str:
    """What is wrong on one line, for a column of the registry; the log has the whole."""
    lines = traceback.strip().splitlines()
    return f"{what}: {lines[-1].strip()}" if lines else what


def what_is_served(queues: Sequence[str], methods: Sequence[str] | None) -> str:
    """For the log."""
    return f"Queues: {', '.join(queues) or 'all'}. Methods: {', '.join(methods or ()) or 'none'}"


class ServerRegistration:
    """The row of this run: made at start, bumped by the heartbeat loop, kept true by a tick, removed at
    the end. `now` is the supervisor's to set."""

    def __init__(
        self, config: ServerConfig, storage: Storage, *, methods: tuple[str, ...] | None = None
    ) -> None:
        self._config = config
        self._storage = storage
        self.id = new_server_id(config.server_name)
        self.now = SelfDescription(queues=tuple(config.queues), methods=methods)
        self._written = self.now

    @property
    def has_heartbeat(self) -> bool:
        """Whether this server sends heartbeats."""
        return self._config.enable_heartbeat

    def judging(self) -> Judging | None:
        """What tells this server of its peers' silence; None: it sends no heartbeats, and judges none."""
        if not self.has_heartbeat:
            return None
        return Judging(self._config, on_one_machine=self.is_on_one_machine)

    @property
    def is_on_one_machine(self) -> bool:
        """Whether every server of this storage is on this machine."""
        return self._storage.is_on_one_machine

    @property
    def is_outdated(self) -> bool:
        """Whether the row says something else than `now`."""
        return self.now != self._written

    def register(self) -> None:
        """Insert the row. Raises `StorageError`."""
        instant, says = self._storage.now(), self.now
        self._storage.register_server(
            ServerInfo(
                id=self.id,
                name=self._config.server_name,
                hostname=socket.gethostname(),
                process=host.identity(),
                worker_count=self._config.worker_count,
                queues=says.queues,
                started_at=instant,
                last_heartbeat=instant,
                heartbeat_enabled=self.has_heartbeat,
                methods=says.methods,
                paused=says.paused,
                trouble=says.trouble,
            )
        )
        self._written = says

    def renew_id(self) -> str:
        """A peer declared this run dead: go on as a new one, whose claims are nobody else's; its id. It has
        to be registered."""
        self.id = new_server_id(self._config.server_name)
        logger.warning("This server goes on as %s", self.id)
        return self.id

    def tick(self) -> Tick:
        """Writes what has changed; due when something has, and until storage has heard."""

        def write(storage: Storage) -> None:
            says = self.now
            storage.update_server(
                self.id, queues=says.queues, methods=says.methods, paused=says.paused, trouble=says.trouble
            )
            self._written = says  # without a row there is nothing to mend: the next one is made of `now`

        return Tick(name="presence", interval=NEVER, body=write)
