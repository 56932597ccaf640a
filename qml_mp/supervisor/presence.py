"""Supervisor: what the registry says of this run of the server."""

from __future__ import annotations

import logging
import socket

from qml_mp import host
from qml_mp.core.ids import new_server_id
from qml_mp.core.server_info import ServerInfo
from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Storage

logger = logging.getLogger(__name__)


class Presence:
    """The row of this run: made at start, bumped by the heartbeat loop, removed at the end."""

    def __init__(self, config: ServerConfig, storage: Storage) -> None:
        self._config = config
        self._storage = storage
        self.id = new_server_id(config.server_name)

    @property
    def has_heartbeat(self) -> bool:
        """Whether this server sends heartbeats: as configured, else as the storage wants."""
        wanted = self._config.enable_heartbeat
        return self._storage.heartbeat_by_default if wanted is None else wanted

    def register(self) -> None:
        """Insert the row. Raises `StorageError`."""
        now = self._storage.now()
        self._storage.register_server(
            ServerInfo(
                id=self.id,
                name=self._config.server_name,
                hostname=socket.gethostname(),
                process=host.identity(),
                worker_count=self._config.worker_count,
                queues=tuple(self._config.queues),
                started_at=now,
                last_heartbeat=now,
                heartbeat_enabled=self.has_heartbeat,
            )
        )

    def renew(self) -> None:
        """A peer declared this run dead: go on as a new one, whose claims are nobody else's."""
        self.id = new_server_id(self._config.server_name)
        self.register()
        logger.warning("This server goes on as %s", self.id)
