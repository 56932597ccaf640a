"""Tests: a clock of storage and of the server on it, both of which a test moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta


class SetClock:
    """It stands until time passes, or it is set."""

    def __init__(self) -> None:
        self.wall = datetime(2026, 3, 1, tzinfo=UTC)
        self.seconds = 1000.0  # no loop begins with the machine
        self.looks = 0
        self.after_look: tuple[int, Callable[[], object]] = (0, lambda: None)
        """What is done between this look at the wall clock and what storage does with it."""

    def now(self) -> datetime:
        told = self.wall
        self.looks += 1
        if self.looks == self.after_look[0]:
            self.after_look[1]()
        return told

    def monotonic(self) -> float:
        return self.seconds

    def passes(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.seconds += seconds

    def is_set(self, by: timedelta) -> None:
        self.wall += by
