"""Worker: storage that does not answer: growing pauses between tries, and what is told of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

from qml_mp.errors import StorageError
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import StorageBack, StorageLost
from qml_mp.storage.waiting import pause_before_next_try_s


class Outages:
    """One worker's."""

    def __init__(self, *, worker_id: str, wait: Callable[[float], None], events: Emitter) -> None:
        """`wait` lets so many seconds pass, or fewer when the supervisor has something to say."""
        self._worker_id = worker_id
        self._wait = wait
        self._events = events
        self._rng = random.Random()
        self._failures = 0
        self._said: str | None = None

    def failed(self, what: str, error: StorageError) -> None:
        """Tell of it, and wait before the next try. `what` could not be done: "claim a job"."""
        text = f"{what}: {error}"
        pause_s = pause_before_next_try_s(self._failures, self._rng)
        self._events.emit(
            StorageLost(
                what=f"Cannot {what}",
                error=error,
                retry_in=timedelta(seconds=pause_s),
                is_repeated=text == self._said,
                worker_id=self._worker_id,
            )
        )
        self._said = text
        self._wait(pause_s)
        self._failures += 1

    def ended(self) -> None:
        """Storage did what was asked of it."""
        if self._said is not None:
            self._events.emit(StorageBack(worker_id=self._worker_id))
        self._said, self._failures = None, 0
