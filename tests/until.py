"""Tests: waiting for what comes about by itself in another process, with a deadline and without a guess."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

_Found = TypeVar("_Found")
PATIENCE_S = 60.0
"""How long a test waits for what comes about in a moment, on whatever machine. It bounds a run that hangs and
judges nothing: what must be quick is told apart from what is not by facts."""


def wait_until(
    find: Callable[[], _Found | None],
    *,
    within_s: float = PATIENCE_S,
    what: str | Callable[[], str] = "it",
) -> _Found:
    """The first truthy answer of `find`; fails the test when there is none in time, and says what was waited
    for: a function tells it as it is then, a log with what has come meanwhile. What takes long is asked for
    more rarely, because many tests wait at a time and an answer costs a query."""
    began = time.monotonic()
    while True:
        waited_s = time.monotonic() - began  # before the look, lest it come about in between
        found = find()
        if found:
            return found
        if waited_s > within_s:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"{told} did not come about within {within_s} s")
        time.sleep(min(0.01 + waited_s / 50, 0.03))  # between two looks


def wait_at(gate: Path) -> None:
    """In a job: go on when the test has made the file. Without a limit: else the test ends the job."""
    while not gate.exists():
        time.sleep(0.002)  # between two looks
