"""Supervisor: the recurring loop: enqueues one job per due firing of each template."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.ticks import Tick

logger = logging.getLogger(__name__)

_MOST_PER_TICK = 256  # of the reference
_AFTER_NEWS = timedelta(milliseconds=250)


def recurring_tick(config: ServerConfig, *, wake: Callable[[], None]) -> Tick:
    """Fires what is due; asks to run again when the next template is due."""

    def fire(storage: Storage) -> timedelta | None:
        fired = storage.fire_due_recurring(limit=_MOST_PER_TICK)
        for job in fired.jobs:
            logger.info("Recurring job %s is enqueued", job.method, extra={"job_id": job.id})
        for recurring_id in fired.disabled:
            logger.error("Recurring template %s is disabled: its cron no longer parses", recurring_id)
        if fired.jobs:
            wake()
        return fired.next_due_in

    return Tick(
        name="recurring", interval=config.recurring_poll_interval, body=fire, hasten_after=_AFTER_NEWS
    )
