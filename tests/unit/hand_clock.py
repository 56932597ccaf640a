"""Tests: the clock of a run, which a test moves."""

from __future__ import annotations

from datetime import UTC, datetime


class HandClock:
    """Stands until it is moved; tells nobody else's time."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return self.seconds
