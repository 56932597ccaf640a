"""Worker: what it shows of itself: in its slot for the supervisor, in its process title for people."""

from __future__ import annotations

import sys
import time

import setproctitle

from qml_mp.ipc.slot import Activity, SlotWriter
from qml_mp.printable import printable
from qml_mp.processing.execution import Execution


class Display:
    """Titles name the method, never arguments. They are not set on macOS: there it kills forked children."""

    def __init__(self, slot: SlotWriter, *, title: str) -> None:
        """`title` is what every process title begins with."""
        self.slot = slot
        self._title = title
        self._set_title("starting")

    def fetching(self) -> None:
        """Storage is asked for a job."""
        self.slot.show(Activity.FETCHING)

    def idle(self) -> None:
        """There is no job."""
        self.slot.show(Activity.IDLE)
        self._set_title("idle")

    def running(self, execution: Execution) -> None:
        """User code runs on behalf of this job. Each call starts its time limit anew."""
        self._show(Activity.RUNNING, execution)
        self._set_title(execution.job.method)

    def finishing(self, execution: Execution) -> None:
        """The outcome of this job is written."""
        self._show(Activity.FINISHING, execution)

    def _show(self, activity: Activity, execution: Execution) -> None:
        self.slot.show_job(
            activity,
            execution.claim.key,
            method=execution.job.method,
            since_ns=time.monotonic_ns(),
            limit=execution.limit,
            retry=execution.when_killed,
            max_crashes=execution.max_crashes,
        )

    def _set_title(self, what: str) -> None:
        if sys.platform != "darwin":
            setproctitle.setproctitle(printable(f"{self._title} {what}"))
