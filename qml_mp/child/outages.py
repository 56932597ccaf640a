"""Worker: storage that does not answer: growing pauses between tries, and what is told of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

from qml_mp.errors import StorageError
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import StorageBack, StorageLost

_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 3.0  # with the jitter below five seconds: by then what is due runs after an outage
_MAX_JITTER_S = 1.5


class Outages:
    """One worker's. Pauses have jitter, so that a fleet does not stampede a recovering storage."""

    def __init__(self, *, worker_id: str, wait: Callable[[float], None], events: Emitter) -> None:
        """`wait` lets so many seconds pass, or fewer when the supervisor has something to say."""
        self._worker_id = worker_id
        self._wait = wait
        self._events = events
        self._pause_s = _FIRST_PAUSE_S
        self._said: str | None = None

    def failed(self, what: str, error: StorageError) -> None:
        """Tell of it, and wait before the next try. `what` could not be done: "claim a job"."""
        text = f"{what}: {error}"
        pause_s = self._pause_s + random.uniform(0, min(self._pause_s, _MAX_JITTER_S))
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
        self._pause_s = min(self._pause_s * 2, _MAX_PAUSE_S)

    def ended(self) -> None:
        """Storage did what was asked of it."""
        if self._said is not None:
            self._events.emit(StorageBack(worker_id=self._worker_id))
        self._said, self._pause_s = None, _FIRST_PAUSE_S
