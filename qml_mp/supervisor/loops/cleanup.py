"""Supervisor: the cleanup loop: deletes final jobs past their time to live, and expired locks."""

from __future__ import annotations

import logging
from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_MOST_PER_TICK = 1000  # a short transaction: others wait for it on SQLite


class CleanupLoop(Loop):
    """Deletes a bounded number of rows per tick, and comes back at once while there are more."""

    def __init__(self, run: Run) -> None:
        super().__init__("cleanup", interval=run.config.cleanup_interval)

    def tick(self, storage: Storage) -> timedelta | None:
        deleted = storage.delete_expired_jobs(limit=_MOST_PER_TICK)
        locks = storage.delete_expired_locks()
        if deleted or locks:
            logger.debug("%s expired jobs and %s expired locks are deleted", deleted, locks)
        return timedelta(0) if deleted == _MOST_PER_TICK else None
