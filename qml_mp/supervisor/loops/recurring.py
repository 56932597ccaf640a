"""Supervisor: the recurring loop: enqueues one job per due firing of each template."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta

from qml_mp.core.server_info import ServerInfo
from qml_mp.events.facts import TemplateDisabled, TemplateFired
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fired
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.loops.unknown_methods import known_to_nobody
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_IN_OTHER_HANDS = timedelta(milliseconds=50)


class RecurringLoop(Loop):
    """Fires what is due and what the program knows; the next tick is due when the next template is.
    A due template that no server knows, or whose job is refused, is told once."""

    name = "recurring"
    hasten_after = timedelta(milliseconds=250)
    is_punctual = True

    def __init__(self, run: Run, *, interval: timedelta) -> None:
        super().__init__(run, interval=interval)
        self._told: set[str] = set()
        self._told_refused: set[str] = set()

    def tick(self, storage: Storage) -> timedelta | None:
        # A program without methods is there for its loops alone, and fires for servers that run jobs.
        methods = self._run.registration.says.methods or None
        fired = storage.fire_due_recurring(methods=methods)
        self._tell_unknown(storage, fired)
        self._tell_refused(fired.refused)
        for job in fired.jobs:
            template_id = str(job.metadata["recurring_id"])
            self._run.events.emit(
                TemplateFired(template_id=template_id, job_id=job.id, method=job.method, queue=job.queue)
            )
        for recurring_id, reason in fired.disabled.items():
            self._run.events.emit(TemplateDisabled(template_id=recurring_id, reason=reason))
        self._run.pool.wake_idle(len(fired.jobs))
        if fired.next_due_in == timedelta() and not (fired.jobs or fired.disabled):
            return _IN_OTHER_HANDS  # looks without a pause would help nobody, least of all whoever fires them
        return fired.next_due_in

    def _tell_unknown(self, storage: Storage, fired: Fired) -> None:
        own_id = self._run.registration.id
        methods = known_to_nobody(storage, fired.unknown.values(), own_id=own_id, knows=ServerInfo.fires)
        unknown = {each: method for each, method in fired.unknown.items() if method in methods}
        for recurring_id in sorted(unknown.keys() - self._told):
            logger.warning(
                "Recurring template %s is due and not fired, because no server knows its method %s. Start a "
                "server whose app has it, or end the template with `qml-mp recurring remove %s`",
                recurring_id,
                unknown[recurring_id],
                recurring_id,
            )
        self._told = set(unknown)

    def _tell_refused(self, refused: Mapping[str, str]) -> None:
        """By template alone: a reason may hold what is another each time, such as the id of the new job."""
        for recurring_id in sorted(refused.keys() - self._told_refused):
            logger.warning(
                "Recurring template %s is due and not fired, because storage refuses its job: %s It is tried "
                "again until it is taken, or the template ends with `qml-mp recurring disable %s`",
                recurring_id,
                refused[recurring_id],
                recurring_id,
            )
        self._told_refused = set(refused)
