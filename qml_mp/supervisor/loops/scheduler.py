"""Supervisor: the scheduler loop: makes due Scheduled and AwaitingRetry jobs runnable, when due."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop

logger = logging.getLogger(__name__)

_AFTER_A_COMMIT = timedelta(milliseconds=50)


class SchedulerLoop(Loop):
    """Promotes a batch per tick; the next is due when the next job is. `wake` is called when there are
    jobs for idle workers."""

    def __init__(self, config: ServerConfig, *, wake: Callable[[], None]) -> None:
        super().__init__("scheduler", interval=config.scheduler_poll_interval, hasten_after=_AFTER_A_COMMIT)
        self._batch_size = config.fetch_batch_size
        self._wake = wake

    def tick(self, storage: Storage) -> timedelta | None:
        promoted = storage.promote_due(limit=self._batch_size)
        if promoted.count:
            logger.debug("%s due jobs are enqueued", promoted.count)
            self._wake()
        return promoted.next_due_in
