"""Worker: tells of each transition that storage has accepted: as a fact, and to the program's hook."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from qml_mp.child.display import Display
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.events.claims import claimed, ended
from qml_mp.events.emitter import Emitter
from qml_mp.processing.errors_text import describe_anything
from qml_mp.processing.execution import Execution
from qml_mp.processing.middleware import StateChange, StateChangeHook
from qml_mp.storage.values import Finished

logger = logging.getLogger(__name__)


class StateChanges:
    """The hook is user code and may raise anything. It may also hang: it has the time limit of the job to
    itself, and a worker that is killed for it loses no job."""

    def __init__(self, hook: StateChangeHook | None, *, display: Display, events: Emitter) -> None:
        self._hook = hook
        self._display = display
        self._events = events

    def claimed(self, execution: Execution) -> None:
        """The job is in hand."""
        self._events.emit(claimed(execution.claim, pid=os.getpid()))
        self._call(execution, execution.job, old=StateName.ENQUEUED)

    def finished(self, execution: Execution, finished: Finished) -> None:
        """The outcome is written, or was not taken."""
        event = ended(execution.claim, finished.job, pid=os.getpid(), attempts=execution.max_attempts)
        if event is not None:
            self._events.emit(event)
        if finished.job is not None:
            self._call(execution, finished.job, old=StateName.PROCESSING)

    def _call(self, execution: Execution, job: Job, *, old: StateName) -> None:
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
