"""Supervisor: the recurring loop: enqueues one job per due firing of each template."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Fired, Storage
from qml_mp.supervisor.loops.loop import Tick
from qml_mp.supervisor.loops.unknown_methods import known_to_nobody
from qml_mp.supervisor.registration import ServerRegistration

logger = logging.getLogger(__name__)

_MOST_PER_TICK = 256  # of the reference
_AFTER_NEWS = timedelta(milliseconds=250)


def recurring_tick(config: ServerConfig, *, presence: ServerRegistration, wake: Callable[[], None]) -> Tick:
    """Fires what is due and what the program knows; asks to run again when the next template is due.
    A due template that no server knows is told once."""
    told: set[str] = set()

    def fire(storage: Storage) -> timedelta | None:
        # A program without methods is there for its loops alone, and fires for servers that run jobs.
        methods = presence.now.methods or None
        fired = storage.fire_due_recurring(limit=_MOST_PER_TICK, methods=methods)
        _tell_unknown(storage, fired, told, own_id=presence.id)
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


def _tell_unknown(storage: Storage, fired: Fired, told: set[str], *, own_id: str) -> None:
    methods = known_to_nobody(storage, fired.unknown.values(), own_id=own_id)
    unknown = {each: method for each, method in fired.unknown.items() if method in methods}
    for recurring_id in sorted(unknown.keys() - told):
        logger.warning(
            "Recurring template %s is due and not fired, because no server knows its method %s. Start a "
            "server whose app has it, or end the template with `qml-mp recurring remove %s`",
            recurring_id,
            unknown[recurring_id],
            recurring_id,
        )
    told.clear()
    told.update(unknown)
