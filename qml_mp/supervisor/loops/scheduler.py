"""Supervisor: the scheduler loop: makes due Scheduled and AwaitingRetry jobs runnable, when due."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.loops.loop import Tick

logger = logging.getLogger(__name__)

_AFTER_NEWS = timedelta(milliseconds=50)


def scheduler_tick(config: ServerConfig, *, wake: Callable[[], None]) -> Tick:
    """Promotes batch after batch; asks to run again when the next job is due. `wake` is called
    when there are jobs for idle workers."""

    def promote(storage: Storage) -> timedelta | None:
        promoted = storage.promote_due(limit=config.fetch_batch_size)
        if promoted.count:
            logger.debug("%s due jobs are enqueued", promoted.count)
            wake()
        return promoted.next_due_in

    return Tick(
        name="scheduler", interval=config.scheduler_poll_interval, body=promote, hasten_after=_AFTER_NEWS
    )
