"""Worker: what it shows of itself and tells of its jobs: in its slot for the supervisor, in its process title
for people, as facts, and to the hook of the program.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace

import setproctitle

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.events.claims import claimed, ended
from qml_mp.events.emitter import Emitter
from qml_mp.ipc.slot import Activity, SlotView, SlotWriter
from qml_mp.printable import printable
from qml_mp.processing.errors_text import describe_anything
from qml_mp.processing.middleware import StateChange, StateChangeHook
from qml_mp.processing.program import Execution
from qml_mp.storage.values import Finished


class Display:
    """Titles name the method, never arguments. They are not set on macOS: there it kills forked children."""

    def __init__(self, slot: SlotWriter, *, title: str) -> None:
        """`title` is what every process title begins with."""
        self.slot = slot
        self._title = title
        self._set_title("starting")

    def fetching(self) -> None:
        """Storage is asked for a job."""
        self.slot.show(SlotView(activity=Activity.FETCHING))

    def idle(self) -> None:
        """There is no job."""
        self.slot.show(SlotView(activity=Activity.IDLE))
        self._set_title("idle")

    def running(self, execution: Execution) -> None:
        """User code runs on behalf of this job. Each call starts its time limit anew."""
        self._show(Activity.RUNNING, execution)
        self._set_title(execution.job.method)

    def finishing(self, execution: Execution) -> None:
        """The outcome of this job is written."""
        self._show(Activity.FINISHING, execution)

    def _show(self, activity: Activity, execution: Execution) -> None:
        self.slot.show(
            SlotView(
                activity=activity,
                key=execution.claim.key,
                method=execution.job.method,
                since_ns=time.monotonic_ns(),
                limit=execution.limit,
                retry=execution.when_killed,
                max_crashes=execution.max_crashes,
            )
        )

    def _set_title(self, what: str) -> None:
        if sys.platform != "darwin":
            setproctitle.setproctitle(printable(f"{self._title} {what}"))


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
