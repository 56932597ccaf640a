"""Every process: waiting for a storage's reply, and for word of new work in it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

DEFAULT_PATIENCE = timedelta(seconds=5)
"""How long one operation waits for a lock of somebody else, unless its storage was opened for less."""

# The mean stays the same however long one waits: with growing pauses, as SQLite has them, the writer that has
# waited longest looks least often.
_SHORTEST_PAUSE_S = 0.0003
_LONGEST_PAUSE_S = 0.003


class StorageWait(Protocol):
    """Waits in the storage's stead, for a process that must do other things meanwhile.

    It must never use the storage itself: the operation that waits has not ended.
    """

    @property
    def give_up_at(self) -> float:
        """The monotonic instant from which on nothing is sent and no reply is waited for."""

    def wait(self, fd: int, *, reading: bool, writing: bool, until: float) -> tuple[bool, bool]:
        """Whether the descriptor can be read and written now; neither when the monotonic instant
        `until` or `give_up_at` has come first."""

    def call_blocking(self, call: Callable[[], str], *, until: float) -> str:
        """What a call says that waits by itself. It may be made in a copy of this process: nothing else of it
        counts. "" when the monotonic instant `until` or `give_up_at` comes first, or the copy dies of it."""

    def pause(self, seconds: float) -> None:
        """Let so much time pass, at most a moment: somebody else's lock is about to be tried again."""


def has_given_up(waiting: StorageWait | None) -> bool:
    """Whether nothing is to be tried any more."""
    return waiting is not None and time.monotonic() >= waiting.give_up_at


def pause_before_next_try(waiting: StorageWait | None) -> None:
    """Let time pass between two tries for a lock that one can only look at."""
    pause = time.sleep if waiting is None else waiting.pause
    pause(random.uniform(_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S))


class PlaceInLine:
    """Of a call that a thread makes for somebody who may go before the storage has its first operation: this
    is begun or given up, whichever comes first."""

    def __init__(self) -> None:
        self.came_at = time.monotonic()
        """As its first operation counts it, which may have waited for a thread; afterwards infinite."""
        self._begins: dict[str, bool] = {}
        """What came first. The thread and whoever goes write it: `setdefault` is atomic."""

    def begin(self) -> bool:
        """Whether it goes on; so does all that follows then."""
        return self._begins.setdefault("", True)

    def give_up(self) -> None:
        """Nothing is to be done any more, unless it has begun."""
        self._begins.setdefault("", False)


place_in_line: ContextVar[PlaceInLine | None] = ContextVar("qml_mp_place_in_line", default=None)
"""Of the call within which a thread uses a storage."""


class WriteTurns(Protocol):
    """Processes that write to a storage one after the other, in the order in which they come."""

    def take(self) -> None:
        """Wait for one's turn; never for long, since whoever has it may be dead or stopped."""

    def give(self) -> None:
        """Let the next one write. Once after each `take`."""


MANY_JOBS = 2**31
"""More than there are workers: it is not known how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeUp:
    """What may have come with what was committed."""

    jobs: int = MANY_JOBS
    """How many jobs can run now. So many workers are woken; each goes on until it finds nothing."""
    more: bool = True
    """Whether there may be anything besides them: what is due later, cancels, templates."""


class EndedWaker(Protocol):
    """Tells who waits for the ends of jobs. For one thread; holds no storage handle across a fork."""

    def fileno(self) -> int:
        """Readable when something was told."""

    def drain(self) -> Collection[str] | None:
        """Read everything there is, without waiting: the ids of jobs that have ended, of these waits or of
        others; None: any may have. Raises `StorageUnavailable` when the connection behind it is lost: close
        it, open another later."""

    def close(self) -> None:
        """Harmless when closed already."""


class Waker(Protocol):
    """Tells a supervisor that there may be new work. Holds no storage handle across a fork:
    the supervisor closes it before forking and opens another after."""

    def fileno(self) -> int:
        """Readable when something was committed."""

    def drain(self, *, soon: bool = True) -> WakeUp | None:
        """Read everything there is, without waiting; None: nothing was committed, or it cannot be seen yet.
        Then the descriptor is readable again as soon as it can be. Not `soon`: nobody waits for a job, so a
        little later will do, and how many there are is not looked at. Raises
        `StorageUnavailable` when the connection behind it is lost: close it, open another later."""

    def close(self) -> None:
        """Harmless when closed already."""
