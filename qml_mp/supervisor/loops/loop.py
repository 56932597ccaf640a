"""Supervisor: the skeleton that all loops share: when each is due, and what a failure does to it.

Each loop has failures and pauses of its own, so that one which storage refuses keeps no other from
its time. Only a storage that cannot be reached concerns all: then none is tried until it answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import timedelta

from qml_mp.clock import Clock
from qml_mp.errors import StorageError, StorageUnreachable
from qml_mp.events.facts import TryWorked
from qml_mp.events.retrying import Retrying
from qml_mp.storage.store import Storage
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.urgent import STORAGE_PATIENCE

AT_ONCE = 0.0
NEVER = float("inf")


class Loop(ABC):
    """One loop; `tick` is one turn of it. Instants are on the monotonic clock."""

    def __init__(
        self, name: str, *, interval: timedelta | None = None, hasten_after: timedelta | None = None
    ) -> None:
        """Without an interval it says itself, in `due_at`, when it has something to do. `hasten_after`: a
        commit of others makes it due, but not within so long after its last tick; None: it does not."""
        self.name = name
        self._interval_s = NEVER if interval is None else interval.total_seconds()
        self._hasten_after = hasten_after
        self._due_at = AT_ONCE
        self._ran_at = float("-inf")

    @abstractmethod
    def tick(self, storage: Storage) -> timedelta | None:
        """Do what is due. Returns in how long it wants to tick again if that is sooner than its interval."""

    def due_at(self) -> float:
        """When its next tick is due."""
        return self._due_at

    def hasten(self) -> None:
        """There may be new rows in storage: be due soon, if it looks for such."""
        if self._hasten_after is not None:
            self._due_at = min(self._due_at, self._ran_at + self._hasten_after.total_seconds())

    def run(self, storage: Storage, clock: Clock) -> None:
        """One tick, then the interval. After an error, which is raised, it is due again at once."""
        now = clock.monotonic()
        self._ran_at, self._due_at = now, now + self._interval_s
        try:
            sooner = self.tick(storage)
        except Exception:
            self._due_at = now
            raise
        if sooner is not None:
            self._due_at = min(self._due_at, clock.monotonic() + max(0.0, sooner.total_seconds()))


class LoopTable(Part):
    """The loops of one supervisor, in the order in which they run when several are due."""

    def __init__(
        self,
        loops: Sequence[Loop],
        *,
        storage: Storage,
        reaching: Retrying,
        may_run: Callable[[], bool],
        between: Callable[[bool], None],
        clock: Clock,
        tries: Callable[[TryWorked], Retrying],
    ) -> None:
        """`reaching` is how storage could be reached so far; `tries` makes the same for one loop. No tick
        runs while `may_run` says no. `between` is called before each tick, with whether those before it
        have taken long."""
        self._loops = loops
        self._storage = storage
        self._reaching = reaching
        self._may_run = may_run
        self._between = between
        self._clock = clock
        self._tries = {loop: tries(TryWorked(what=f"The {loop.name} loop works again")) for loop in loops}

    def next_at(self) -> float:
        if not self._may_run():
            return NEVER
        due_at = min((self._due_at(loop) for loop in self._loops), default=NEVER)
        return max(due_at, self._reaching.not_before)

    def turn(self) -> None:
        """Run what is due. A storage that could not be reached is asked first whether it answers again,
        because not every loop has something to ask it."""
        slow_at = self._clock.monotonic() + STORAGE_PATIENCE.total_seconds()
        if not self._may_run() or (self._reaching.is_failing and not self._answers_again()):
            return
        for loop in self._loops:
            now = self._clock.monotonic()
            if now >= self._due_at(loop):
                self._between(now >= slow_at)
                self._try(loop)
            if self._reaching.is_failing:
                return

    def run_if_due(self, loop: Loop) -> None:
        """Run this one before its turn, unless storage cannot be reached."""
        due = self._clock.monotonic() >= self._due_at(loop)
        if due and self._may_run() and not self._reaching.is_failing:
            self._try(loop)

    def hasten(self) -> None:
        """Something was committed: loops that look for new rows are due soon."""
        for loop in self._loops:
            loop.hasten()

    def _due_at(self, loop: Loop) -> float:
        return max(loop.due_at(), self._tries[loop].not_before)

    def _answers_again(self) -> bool:
        if self._clock.monotonic() < self._reaching.not_before:
            return False
        try:
            self._storage.list_servers()
        except StorageUnreachable as error:
            self._not_reached(error)
            return False
        except StorageError:
            pass  # it refuses this, and it answers
        self._reaching.worked()
        return True

    def _try(self, loop: Loop) -> None:
        try:
            loop.run(self._storage, self._clock)
        except StorageUnreachable as error:
            self._not_reached(error)
        except Exception as error:
            self._tries[loop].failed(f"The {loop.name} loop failed", error, now=self._clock.monotonic())
        else:
            self._tries[loop].worked()

    def _not_reached(self, error: StorageUnreachable) -> None:
        self._reaching.failed("Storage cannot be reached", error, now=self._clock.monotonic())
