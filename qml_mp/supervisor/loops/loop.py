"""Supervisor: the skeleton that all loops share: when each is due, and what a failure does to it.

Each loop has failures and pauses of its own, so that one which storage refuses keeps no other from
its time. Only a storage that cannot be reached concerns all: then none is tried until it answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from datetime import timedelta

from qml_mp.clock import Clock
from qml_mp.errors import StorageError, StorageUnreachable
from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.retrying import Retrying

NEVER = timedelta(days=365)
"""The interval of a loop that runs when it is told to."""
TickBody = Callable[[Storage], timedelta | None]
"""One turn of a loop. Returns in how long it wants to run again if that is sooner than its interval."""


class Tick:
    """One loop. Instants are on the monotonic clock."""

    def __init__(
        self, *, name: str, interval: timedelta, body: TickBody, hasten_after: timedelta | None = None
    ) -> None:
        """`hasten_after`: news from storage make it due, but not within so long after its last turn;
        None: they do not."""
        self.name = name
        self.interval = interval
        self.body = body
        self.hasten_after = hasten_after
        self.due_at = 0.0
        self.ran_at = float("-inf")


class TickTable:
    """The loops of one supervisor."""

    def __init__(self, ticks: Iterable[Tick], *, storage: Storage, clock: Clock, rng: random.Random) -> None:
        self._ticks = {tick.name: tick for tick in ticks}
        self._storage = storage
        self._clock = clock
        self._reaching = Retrying(fails="Storage cannot be reached", works="Storage answers again", rng=rng)
        self._tries = {
            name: Retrying(fails=f"The {name} loop failed", works=f"The {name} loop works again", rng=rng)
            for name in self._ticks
        }

    @property
    def storage_is_down(self) -> bool:
        """Whether storage could not be reached when it was tried last."""
        return self._reaching.is_failing

    def next_at(self) -> float | None:
        """When the next turn is due; None: there are no loops."""
        due_at = min((self._due_at(tick) for tick in self._ticks.values()), default=None)
        return None if due_at is None else max(due_at, self._reaching.not_before)

    def hasten(self) -> None:
        """There is news in storage: loops that look for new rows are due soon."""
        for tick in self._ticks.values():
            if tick.hasten_after is not None:
                tick.due_at = min(tick.due_at, tick.ran_at + tick.hasten_after.total_seconds())

    def make_due(self, name: str) -> None:
        """Run this loop at the next turn."""
        self._ticks[name].due_at = self._clock.monotonic()

    def run(self, name: str) -> None:
        """Run this loop now, whatever is due and whether or not storage has failed before."""
        self._run(self._ticks[name], self._clock.monotonic())

    def run_due(self, *, between: Callable[[], None] = lambda: None) -> None:
        """Run what is due, and `between` before each. Of a storage that could not be reached it is asked
        first whether it answers again, because not every loop has something to ask it."""
        if self.storage_is_down and not self._answers_again():
            return
        for tick in self._ticks.values():
            now = self._clock.monotonic()
            if now >= self._due_at(tick):
                between()
                self._run(tick, now)
            if self.storage_is_down:
                return

    def _due_at(self, tick: Tick) -> float:
        return max(tick.due_at, self._tries[tick.name].not_before)

    def _answers_again(self) -> bool:
        now = self._clock.monotonic()
        if now < self._reaching.not_before:
            return False
        try:
            self._storage.list_servers()
        except StorageUnreachable as error:
            self._reaching.failed(error, now=self._clock.monotonic())
            return False
        except StorageError:
            pass  # it refuses this, and it answers
        self._reaching.worked()
        return True

    def _run(self, tick: Tick, now: float) -> None:
        tick.ran_at = now
        tick.due_at = now + tick.interval.total_seconds()
        tries = self._tries[tick.name]
        try:
            sooner = tick.body(self._storage)
        except StorageUnreachable as error:
            tick.due_at = now
            self._reaching.failed(error, now=self._clock.monotonic())
        except Exception as error:
            tick.due_at = now
            tries.failed(error, now=self._clock.monotonic())
        else:
            tries.worked()
            if sooner is not None:
                tick.due_at = min(tick.due_at, self._clock.monotonic() + max(0.0, sooner.total_seconds()))
