"""Worker: what it shows of itself and tells of its jobs: in its slot for the supervisor, in its process title
for people, as facts, and to the hook of the program.
"""

from __future__ import annotations

import logging
import sys
import time

import setproctitle

from qml_mp.child.estimate import LONG_S
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.events.claims import ended
from qml_mp.events.emitter import Emitter
from qml_mp.ipc.bell import Bell
from qml_mp.ipc.slot import Activity, SlotView, SlotWriter, packed_terms
from qml_mp.printable import printable
from qml_mp.processing.errors_text import describe_anything
from qml_mp.processing.job_records import about
from qml_mp.processing.middleware import StateChange, StateChangeHook
from qml_mp.processing.own_context import in_own_context
from qml_mp.processing.program import Execution, Terms
from qml_mp.storage.values import Finished

_TITLE_HOLDS_NS = 1_000_000_000  # then it is set anew: a job may have set another


class Display:
    """Titles name the method, never arguments. They are not set on macOS: there it kills forked children."""

    def __init__(self, slot: SlotWriter, *, bell: Bell, title: str) -> None:
        """`title` is what every process title begins with."""
        self.slot = slot
        self._bell = bell
        self._title = title
        self._titled = ""
        self._titled_at_ns = 0
        self._terms: Terms | None = None
        self._packed_terms = b""
        """Those of the newest job, and as the slot has them."""
        self._set_title("starting")

    def fetching(self) -> None:
        """Storage is asked for a job."""
        self.slot.show(SlotView(activity=Activity.FETCHING))

    def idle(self) -> None:
        """There is no job."""
        self.slot.show(SlotView(activity=Activity.IDLE))
        self._bell.ring()
        self._set_title("idle")

    def running(self, execution: Execution, *, is_over: bool = False) -> None:
        """User code runs on behalf of this job. Each call starts its time limit anew. `is_over`: the job
        itself has ended, or never begins."""
        terms = execution.terms
        if terms is not self._terms:
            self._terms = terms
            self._packed_terms = packed_terms(
                method=terms.method,
                limit=terms.limit,
                retry=terms.when_killed,
                max_crashes=terms.max_crashes,
            )
        now_ns = time.monotonic_ns()
        self.slot.show_running(
            execution.claim.key, since_ns=now_ns, terms=self._packed_terms, is_over=is_over
        )
        if terms.method != self._titled or now_ns - self._titled_at_ns > _TITLE_HOLDS_NS:
            self._set_title(terms.method)
            self._titled_at_ns = now_ns

    def finishing(self) -> None:
        """The job that ran has ended."""
        self.slot.show_finishing()

    def _set_title(self, what: str) -> None:
        self._titled = what
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
        self.has_failed = False
        """Whether an outcome has made a job fail for good; whoever heeds it sets it back."""
        self.takes_long = False
        """Whether the hook took so long of late that others get what is held meanwhile."""

    def claimed(self, execution: Execution, *, begins: bool = True) -> None:
        """The job is in hand, and `begins`, or does not any more."""
        if self._hook is not None:
            self._call(execution, execution.job, old=StateName.ENQUEUED, is_over=not begins)

    def given_back(self, execution: Execution) -> None:
        """The job was in hand for the hook alone, and has no limit any more."""
        self.claimed(execution, begins=False)
        if self._hook is not None:
            self._display.finishing()

    def finished(self, execution: Execution, finished: Finished, *, is_told: bool) -> None:
        """The outcome is written, or was not taken. `is_told`: the supervisor had written it before, and has
        told the fact."""
        if not is_told and finished.state is not StateName.SUCCEEDED:
            self._tell_of_end(execution, finished)
        if finished.state is StateName.FAILED:
            self.has_failed = True
        job = None if self._hook is None else finished.job
        if job is not None:
            self._call(execution, job, old=StateName.PROCESSING, is_over=True)
            self._display.finishing()  # the worker may wait for storage next, under no limit

    def _tell_of_end(self, execution: Execution, finished: Finished) -> None:
        attempts = execution.terms.max_attempts
        event = ended(execution.claim, finished.job, attempts=attempts)
        if event is not None:
            self._events.emit(event)

    def _call(self, execution: Execution, job: Job, *, old: StateName, is_over: bool) -> None:
        hook = self._hook
        if hook is None:
            return
        self._display.running(execution, is_over=is_over)
        began_at = time.monotonic()
        try:
            change = StateChange.of(job, old=old)
            in_own_context(lambda told, _: hook(told), change, None)
        except BaseException as error:
            told = describe_anything(error)
            trace = (told.traceback or "").rstrip()
            logger.error(
                "The state-change hook failed: %s: %s\n%s",
                told.type,
                told.message,
                trace,
                extra={**about(execution.claim), "traceback": trace},
            )
        self.takes_long = time.monotonic() - began_at > LONG_S
