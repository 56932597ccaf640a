"""Supervisor: jobs whose time has come: due ones are made runnable, those past their time to live deleted."""

from __future__ import annotations

import logging
from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop

logger = logging.getLogger(__name__)

_MOST_DELETED_PER_TICK = 1000  # a short transaction: others wait for it on SQLite


class SchedulerLoop(Loop):
    """Promotes a batch of Scheduled and AwaitingRetry jobs per tick; the next is due when the next job is."""

    name = "scheduler"
    hasten_after = timedelta(milliseconds=50)

    def tick(self, storage: Storage) -> timedelta | None:
        promoted = storage.promote_due(limit=self._run.config.fetch_batch_size)
        if promoted.count:
            logger.debug("%s due jobs are enqueued", promoted.count)
            self._run.pool.wake_idle(promoted.count)
        return promoted.next_due_in


class CleanupLoop(Loop):
    """Deletes final jobs past their time to live, and expired locks: a bounded number of rows per tick, and
    at once again while there are more."""

    name = "cleanup"

    def tick(self, storage: Storage) -> timedelta | None:
        deleted = storage.delete_expired_jobs(limit=_MOST_DELETED_PER_TICK)
        locks = storage.delete_expired_locks()
        if deleted or locks:
            logger.debug("%s expired jobs and %s expired locks are deleted", deleted, locks)
        return timedelta(0) if deleted == _MOST_DELETED_PER_TICK else None
