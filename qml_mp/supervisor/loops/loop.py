"""Supervisor: the skeleton that all loops share: when each is due, and what a failure does to it.

Each loop has failures and pauses of its own, so that one which storage refuses keeps no other from
its time. Only a storage that cannot be reached concerns all: then none is tried until it answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from qml_mp.errors import StorageError, StorageUnreachable
from qml_mp.storage.store import Storage
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.urgent import STORAGE_PATIENCE

_QUICK_S = 0.01
AT_ONCE = 0.0
NEVER = float("inf")


class Loop(ABC):
    """One loop; `tick` is one turn of it. Instants are on the monotonic clock."""

    name: str
    interval: timedelta | None = None
    """Between two ticks; None: it says itself, in `due_at`, when it has something to do."""
    hasten_after: timedelta | None = None
    """A commit of others makes it due, but not within so long after its last tick; None: it does not."""
    looks_at_jobs: bool = False
    """Whether a commit of which nothing came but jobs that can run makes it due too."""
    is_punctual: bool = False
    """Whether what it does is due at an instant. Then it is looked at before each of the others, so that it
    waits for one of them at most."""

    def __init__(self, run: Run, *, interval: timedelta | None = None) -> None:
        """With an interval where that is a setting."""
        self._run = run
        if interval is not None:
            self.interval = interval
        self._due_at = AT_ONCE
        self._ran_at = float("-inf")
        self.tries = run.retrying(f"The {self.name} loop works again")
        """How its ticks went."""
        self.succeeded_at: datetime | None = None
        """When the newest tick had done what it should; None: none has."""

    @abstractmethod
    def tick(self, storage: Storage) -> timedelta | None:
        """Do what is due. Returns in how long it wants to tick again if that is sooner than its interval."""

    @property
    def failing_since(self) -> float | None:
        """Since when its tries have failed, or those of a part of its work; None: the newest have not."""
        return self.tries.failing_since if self._part_failing_since is None else self._part_failing_since

    @property
    def _part_failing_since(self) -> float | None:
        """Of a loop whose tick works also where a part of the work has failed and is tried again."""
        return None

    def due_at(self) -> float:
        return self._due_at

    def hasten(self) -> None:
        """There may be new rows in storage: be due soon, if it looks for such."""
        if self.hasten_after is not None:
            self._due_at = min(self._due_at, self._ran_at + self.hasten_after.total_seconds())

    def run(self, storage: Storage) -> None:
        """One tick, then the interval. After an error, which is raised, it is due again at once."""
        now = self._run.clock.monotonic()
        self._ran_at = now
        self._due_at = NEVER if self.interval is None else now + self.interval.total_seconds()
        try:
            sooner = self.tick(storage)
        except Exception:
            self._due_at = now
            raise
        if self._part_failing_since is None:
            self.succeeded_at = self._run.clock.now()
        if sooner is not None:
            self._due_at = min(self._due_at, self._run.clock.monotonic() + max(0.0, sooner.total_seconds()))


class LoopTable(Part):
    """The loops of one supervisor, in the order in which they run when several are due. None runs while the
    stop has no time for storage."""

    def __init__(
        self, run: Run, loops: Sequence[Loop], *, storage: Storage, between: Callable[[bool], None]
    ) -> None:
        """`between` is called before a tick when a moment has passed, with whether the ticks before it have
        taken long."""
        self.loops = loops
        """All of them."""
        self._punctual = [loop for loop in loops if loop.is_punctual]
        self._storage = storage
        self._between = between
        self._may_run = run.stop.has_time_for_storage
        self._reaching = run.reaching
        self._clock = run.clock

    def next_at(self) -> float:
        if not self._may_run():
            return NEVER
        return max(min(map(_due_at, self.loops)), self._reaching.not_before)

    def turn(self) -> None:
        """Run what is due. A storage that could not be reached is asked first whether it answers again,
        because not every loop has something to ask it."""
        began = looked = self._clock.monotonic()
        if not self._may_run() or (self._reaching.is_failing and not self._answers_again()):
            return
        for loop in self.loops:
            if self._clock.monotonic() < _due_at(loop):
                continue
            for each in (*self._punctual, loop):
                now = self._clock.monotonic()
                if now >= _due_at(each):
                    if now - looked >= _QUICK_S:
                        self._between(now - began >= STORAGE_PATIENCE.total_seconds())
                        looked = self._clock.monotonic()
                    if not self._may_run():  # what was looked after meanwhile has ended the run
                        return
                    self._try(each)
                if self._reaching.is_failing:
                    return

    def run_if_due(self, loop: Loop) -> None:
        """Run this one before its turn, unless storage cannot be reached."""
        due = self._clock.monotonic() >= _due_at(loop)
        if due and self._may_run() and not self._reaching.is_failing:
            self._try(loop)

    def hasten(self, *, jobs_alone: bool = False) -> None:
        """Something was committed: loops that look for new rows are due soon. `jobs_alone`: nothing but jobs
        that can run."""
        for loop in self.loops:
            if loop.looks_at_jobs or not jobs_alone:
                loop.hasten()

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
            loop.run(self._storage)
        except StorageUnreachable as error:
            self._not_reached(error)
        except Exception as error:
            loop.tries.failed(f"The {loop.name} loop failed", error, now=self._clock.monotonic())
        else:
            loop.tries.worked()

    def _not_reached(self, error: StorageUnreachable) -> None:
        self._reaching.failed("Storage cannot be reached", error, now=self._clock.monotonic())


def _due_at(loop: Loop) -> float:
    return max(loop.due_at(), loop.tries.not_before)
