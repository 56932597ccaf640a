"""Supervisor: the scheduler loop: makes due Scheduled and AwaitingRetry jobs runnable, when due."""

from __future__ import annotations

import logging
from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_AFTER_A_COMMIT = timedelta(milliseconds=50)


class SchedulerLoop(Loop):
    """Promotes a batch per tick; the next is due when the next job is."""

    def __init__(self, run: Run) -> None:
        super().__init__(
            "scheduler", interval=run.config.scheduler_poll_interval, hasten_after=_AFTER_A_COMMIT
        )
        self._run = run

    def tick(self, storage: Storage) -> timedelta | None:
        promoted = storage.promote_due(limit=self._run.config.fetch_batch_size)
        if promoted.count:
            logger.debug("%s due jobs are enqueued", promoted.count)
            self._run.pool.wake_idle()
        return promoted.next_due_in
