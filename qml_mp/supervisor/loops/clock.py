"""Supervisor: what a clock that was set would keep waiting, brought forward again, and firings corrected.

Rows hold wall time, by the clock of storage. After a step back a firing, a retry, a job that its jitter puts
off, a call for a failed one or a lost span would rest until that clock has caught up. After a step forward,
or after a sleep of the machine, more is due than the loops that wait for an instant know. So the clock is
compared with monotonic time. At the start nothing tells what it was before: rows are looked at that can only
come from the future, and the loops, which may have looked before a step, look again. The look at rows finds
firings that were stored before new rules of their zone, too, which a process takes over at its start.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime, timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_INTERVAL = timedelta(seconds=1)
_INTERVAL_BY_NETWORK = timedelta(seconds=5)  # a look costs a round trip
_NO_STEP_S = 0.5  # slewing and slow replies are none


class ClockSteps:
    """Pure: told of both clocks now and then, it remembers that the wall clock was set."""

    def __init__(self) -> None:
        self._offset_s: float | None = None
        self.went_back = True
        """Since it was last forgotten; at first it may have been, before there was a look."""
        self.went_ahead = True
        """At the newest look, since the one before; at the first it may have been, too."""

    def look(self, *, wall: datetime, monotonic: float) -> None:
        """Compare the clocks with what they told at the look before."""
        offset_s = wall.timestamp() - monotonic
        before_s, self._offset_s = self._offset_s, offset_s
        if before_s is not None:
            self.went_back = self.went_back or offset_s < before_s - _NO_STEP_S
            self.went_ahead = offset_s > before_s + _NO_STEP_S

    def forget(self) -> None:
        """What waits has been brought forward."""
        self.went_back = False


class ClockLoop(Loop):
    """Brings forward what would rest when the clock was set back, and corrects firings at the start. The
    loops `due_by_it` look again then, and when it was set forward."""

    name = "clock"

    def __init__(self, run: Run, *, on_one_machine: bool, due_by_it: Iterable[Loop]) -> None:
        super().__init__(run, interval=_INTERVAL if on_one_machine else _INTERVAL_BY_NETWORK)
        self._due_by_it = tuple(due_by_it)
        self._steps = ClockSteps()

    def tick(self, storage: Storage) -> None:
        self._steps.look(wall=storage.now(), monotonic=self._run.clock.monotonic())
        if self._steps.went_ahead:
            self._look_again()
        if not self._steps.went_back:
            return
        templates = storage.correct_firings()
        jobs = storage.hasten_jobs_from_the_future()
        self._steps.forget()  # not before both are written
        if templates or jobs:
            logger.warning(
                "The clock was set back, or a zone has other rules: %s recurring templates and %s jobs, "
                "or what is told of ended ones, are due at another instant than stored",
                len(templates),
                jobs,
            )
            self._look_again()

    def _look_again(self) -> None:
        for loop in self._due_by_it:
            loop.hasten()
