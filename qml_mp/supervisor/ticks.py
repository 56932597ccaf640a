"""Supervisor: the skeleton that all loops share: when each is due, and what a failure does to it.

A tick that fails is logged and runs again; while storage does not answer, its pauses grow, and
no tick is tried when a worker has to be pushed sooner than a hanging storage would let go.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.clock import Clock
from qml_mp.errors import StorageError
from qml_mp.storage.protocol import Storage

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 5.0
_MAX_JITTER_S = 1.5

TickBody = Callable[[Storage], timedelta | None]
"""One turn of a loop. Returns in how long it wants to run again if that is sooner than its interval."""


@dataclass(kw_only=True, eq=False)
class Tick:
    """One loop."""

    name: str
    interval: timedelta
    body: TickBody
    hasten_after: timedelta | None = None
    """News from storage make it due, but not within so long after its last turn; None: they do not."""
    due_at: float = 0.0
    ran_at: float = float("-inf")


class TickTable:
    """The loops of one supervisor, on the monotonic clock."""

    def __init__(self, ticks: Iterable[Tick], *, storage: Storage, clock: Clock, rng: random.Random) -> None:
        self._ticks = list(ticks)
        self._storage = storage
        self._clock = clock
        self._rng = rng
        self._failures = 0
        self._not_before = 0.0

    @property
    def storage_is_down(self) -> bool:
        """Whether the newest turn failed for want of storage."""
        return self._failures > 0

    def next_at(self) -> float | None:
        """When the next turn is due; None: there are no loops."""
        due_at = min((tick.due_at for tick in self._ticks), default=None)
        return None if due_at is None else max(due_at, self._not_before)

    def hasten(self) -> None:
        """There is news in storage: loops that look for new rows are due soon."""
        for tick in self._ticks:
            if tick.hasten_after is not None:
                tick.due_at = min(tick.due_at, tick.ran_at + tick.hasten_after.total_seconds())

    def make_due(self, name: str) -> None:
        """Run this loop at the next turn."""
        for tick in self._ticks:
            if tick.name == name:
                tick.due_at = self._clock.monotonic()

    def run(self, name: str) -> None:
        """Run this loop now, whatever is due and whether or not storage has failed before."""
        for tick in self._ticks:
            if tick.name == name:
                self._run(tick, self._clock.monotonic())

    def run_due(self) -> None:
        """Run what is due; the first failure ends the turn."""
        for tick in self._ticks:
            now = self._clock.monotonic()
            if now < self._not_before:
                return
            if now >= tick.due_at and not self._run(tick, now):
                return

    def _run(self, tick: Tick, now: float) -> bool:
        tick.ran_at = now
        tick.due_at = now + tick.interval.total_seconds()
        try:
            sooner = tick.body(self._storage)
        except StorageError as error:
            self._back_off(tick, error)
            return False
        except Exception:
            logger.exception("The %s loop failed; it runs again", tick.name)
            return True
        if self._failures:
            logger.info("Storage answers again")
        self._failures = 0
        if sooner is not None:
            tick.due_at = min(tick.due_at, self._clock.monotonic() + max(0.0, sooner.total_seconds()))
        return True

    def _back_off(self, tick: Tick, error: StorageError) -> None:
        pause_s = min(_FIRST_BACKOFF_S * 2**self._failures, _MAX_BACKOFF_S)
        pause_s += self._rng.uniform(0, min(pause_s, _MAX_JITTER_S))
        self._failures = min(self._failures + 1, 16)
        now = self._clock.monotonic()
        self._not_before = now + pause_s
        tick.due_at = now
        logger.warning("The %s loop failed and is tried again in %.1f s: %s", tick.name, pause_s, error)
