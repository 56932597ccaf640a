"""Anywhere: the one place that reads a clock, so that a test can put another in its stead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Protocol

_FIRST_PAUSE_S = 0.005
_LONGEST_PAUSE_S = 0.1
_PAUSE_GROWTH = 1.5


class Clock(Protocol):
    """Wall time for rows, monotonic time for deadlines."""

    def now(self) -> datetime:
        """The present instant, aware, in UTC."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary origin that never step backwards."""


class SystemClock:
    """The clock of this machine."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


def growing_pauses() -> Iterator[float]:
    """For whoever asks storage again and again: seconds, from 5 ms to a tenth, without an end."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(pause_s * _PAUSE_GROWTH, _LONGEST_PAUSE_S)


def iso(instant: datetime | None) -> str | None:
    """As JSON has it."""
    return None if instant is None else instant.isoformat()
