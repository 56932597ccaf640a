"""Supervisor: the history: to which minute what came of claims belongs, and its way into storage.

What is counted is noted at the end of each minute, whether storage answers or not, and written every ten
seconds, in one statement. A period is written whole, so that it harms nothing to write it again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from qml_mp.core.history import SeriesKey
from qml_mp.errors import StorageError
from qml_mp.storage.history import MINUTE, STEPS, Period, floor_to
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import NEVER, Loop
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 16  # some 40 ms of this process, with two hundred methods in each
_MOST_UNWRITTEN = 500
"""Periods kept while storage does not answer; then the oldest of the shortest go: longer ones have it."""
_COMPARE_CLOCKS_EVERY_S = 600.0


@dataclass(kw_only=True)
class _Period:
    """One that is counted in, or that is over and not written yet. Mutable; the supervisor's."""

    step: timedelta
    begins_at: datetime
    writer: str
    numbers: dict[SeriesKey, Sequence[int]] = field(default_factory=dict)
    is_written: bool = True
    changes: int = 0
    """How often something was added."""


class Periods(Part):
    """Those of one run of a server."""

    def __init__(self, run: Run) -> None:
        self._totals = run.pool.totals
        self._clock = run.clock
        self._id = run.registration.id
        self._restarts = 0
        self._ahead = timedelta()
        """By how much the database's clock is before this machine's."""
        self._before: dict[SeriesKey, Sequence[int]] = {}
        """What was counted in all when that was noted last."""
        now = self._now()
        self._open = {step: self._begin(step, now) for step in STEPS}
        self._over: list[_Period] = []
        self._is_kept = bool(run.config.history_ttl)
        self._minute_ends = self._next_minute(now)

    def next_at(self) -> float:
        return self._minute_ends if self._is_kept else NEVER

    def turn(self) -> None:
        if self._is_kept and self._clock.monotonic() >= self._minute_ends:
            self.note()

    def note(self) -> None:
        """What was counted since the last time belongs to the periods that were open until now."""
        self._totals.look()
        for key, numbers in self._totals.numbers.items():
            before = self._before.get(key)
            if before is not numbers:
                self._before[key] = numbers
                self._add(key, _difference(numbers, before))
        now = self._now()
        for step, period in self._open.items():
            if floor_to(step, now) != period.begins_at:
                self._end(period, now)
        self._minute_ends = self._next_minute(now)

    def follow_clock(self, database_now: datetime) -> None:
        """The periods of all servers are those of the database's clock."""
        self._ahead = database_now - self._clock.now()

    def unwritten(self) -> list[_Period]:
        """Those that are over first; at most as many as one statement takes."""
        now_open = [period for period in self._open.values() if not period.is_written]
        return [*self._over, *now_open][:_MOST_AT_ONCE]

    def note_written(self, periods: Sequence[tuple[_Period, int]]) -> None:
        """These are, as they were after so many changes: some may have come while storage was waited for."""
        for period, changes in periods:
            period.is_written = period.changes == changes
        self._over = [period for period in self._over if not period.is_written]

    def _add(self, key: SeriesKey, more: Sequence[int]) -> None:
        for period in self._open.values():
            before = period.numbers.get(key)
            period.numbers[key] = more if before is None else list(map(int.__add__, before, more))
            period.is_written = False
            period.changes += 1

    def _end(self, period: _Period, now: datetime) -> None:
        if now < period.begins_at:
            self._restarts += 1  # the clock was set back: nothing may take the place of what is written
        if not period.is_written:
            self._over.append(period)
        if len(self._over) > _MOST_UNWRITTEN:
            shortest = min(self._over, key=lambda one: (one.step, one.begins_at))
            self._over.remove(shortest)
        self._open[period.step] = self._begin(period.step, now)

    def _begin(self, step: timedelta, now: datetime) -> _Period:
        writer = f"{self._id}~{self._restarts}" if self._restarts else self._id
        return _Period(step=step, begins_at=floor_to(step, now), writer=writer)

    def _now(self) -> datetime:
        return self._clock.now() + self._ahead

    def _next_minute(self, now: datetime) -> float:
        left = floor_to(MINUTE, now) + MINUTE - now
        return self._clock.monotonic() + left.total_seconds()


class HistoryLoop(Loop):
    """Asks storage for nothing while nothing ends."""

    name = "history"
    interval = timedelta(seconds=10)

    def __init__(self, run: Run, *, on_one_machine: bool) -> None:
        super().__init__(run)
        self.periods = Periods(run)
        self._is_kept = bool(run.config.history_ttl)
        self._on_one_machine = on_one_machine
        self._compare_clocks_at = 0.0

    def tick(self, storage: Storage) -> timedelta | None:
        if not self._is_kept:
            return None
        self.periods.note()
        periods = self.periods.unwritten()
        if not periods:
            return None
        self._follow_clock(storage)
        sent = [(period, period.changes) for period in periods]
        storage.note_history([_as_stored(period) for period in periods])
        self.periods.note_written(sent)
        return timedelta() if len(periods) == _MOST_AT_ONCE else None

    def write_rest(self, storage: Storage) -> None:
        """The server has left the registry, and all that it counts is counted. Raises nothing: what cannot be
        written now is lost, the jobs themselves are not."""
        try:
            self.tick(storage)
        except StorageError as error:
            logger.warning("The history of the last seconds is not written: %s", error)

    def _follow_clock(self, storage: Storage) -> None:
        now = self._run.clock.monotonic()
        if not self._on_one_machine and now >= self._compare_clocks_at:
            self._compare_clocks_at = now + _COMPARE_CLOCKS_EVERY_S
            self.periods.follow_clock(storage.now())


def _as_stored(period: _Period) -> Period:
    return Period(
        step=period.step, begins_at=period.begins_at, writer=period.writer, numbers=dict(period.numbers)
    )


def _difference(numbers: Sequence[int], before: Sequence[int] | None) -> Sequence[int]:
    return numbers if before is None else list(map(int.__sub__, numbers, before))
