"""Supervisor: the cleanup loop: deletes final jobs past their time to live, and expired locks."""

from __future__ import annotations

import logging
from datetime import timedelta

from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.loops.loop import Tick

logger = logging.getLogger(__name__)

_MOST_PER_TURN = 1000  # a short transaction: others wait for it on SQLite


def cleanup_tick(config: ServerConfig) -> Tick:
    """Deletes a bounded number of rows per turn, and comes back at once while there are more."""

    def clean(storage: Storage) -> timedelta | None:
        deleted = storage.delete_expired_jobs(limit=_MOST_PER_TURN)
        locks = storage.delete_expired_locks()
        if deleted or locks:
            logger.debug("%s expired jobs and %s expired locks are deleted", deleted, locks)
        return timedelta(0) if deleted == _MOST_PER_TURN else None

    return Tick(name="cleanup", interval=config.cleanup_interval, body=clean)
