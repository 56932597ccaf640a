"""Worker: tells the program's hook of each transition that storage has accepted."""

from __future__ import annotations

import logging
from dataclasses import replace

from qml_mp.child.display import Display
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.processing.errors_text import describe_anything
from qml_mp.processing.execution import Execution
from qml_mp.processing.middleware import StateChange, StateChangeHook

logger = logging.getLogger(__name__)


class StateChanges:
    """Calls the hook, when there is one. It is user code and may raise anything. It may also hang: it has the
    time limit of the job to itself, and a worker that is killed for it loses no job."""

    def __init__(self, hook: StateChangeHook | None, *, display: Display) -> None:
        self._hook = hook
        self._display = display

    def announce(self, execution: Execution, job: Job, *, old: StateName) -> None:
        """Call the hook with the row as the transition left it."""
        if self._hook is None:
            return
        self._display.running(execution)
        try:
            self._hook(StateChange(job=replace(job), old=old, new=job.state_name))
        except BaseException as error:
            told = describe_anything(error)
            logger.error(
                "The state-change hook failed: %s: %s\n%s",
                told.type,
                told.message,
                told.traceback or "",
                extra={"job_id": job.id},
            )
