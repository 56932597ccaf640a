"""Worker: storage that does not answer: growing pauses between tries, and what the log says of it.

The log has one line for each change of state (it fails, it fails in another way, it answers again), however
long an outage lasts; the tries in between are told at DEBUG.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from qml_mp.errors import StorageError

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 3.0  # with the jitter below five seconds: by then what is due runs after an outage
_MAX_JITTER_S = 1.5


class Outages:
    """One worker's. Pauses have jitter, so that a fleet does not stampede a recovering storage."""

    def __init__(self, *, worker_id: str, wait: Callable[[float], None]) -> None:
        """`wait` lets so many seconds pass, or fewer when the supervisor has something to say."""
        self._extra = {"worker_id": worker_id}
        self._wait = wait
        self._pause_s = _FIRST_PAUSE_S
        self._said: str | None = None

    def failed(self, what: str, error: StorageError) -> None:
        """Tell of it, and wait before the next try. `what` could not be done: "claim a job"."""
        text = f"Cannot {what}, will try again: {error}"
        logger.log(logging.DEBUG if text == self._said else logging.WARNING, "%s", text, extra=self._extra)
        self._said = text
        self._wait(self._pause_s + random.uniform(0, min(self._pause_s, _MAX_JITTER_S)))
        self._pause_s = min(self._pause_s * 2, _MAX_PAUSE_S)

    def ended(self) -> None:
        """Storage did what was asked of it."""
        if self._said is not None:
            logger.info("Storage answers again", extra=self._extra)
        self._said, self._pause_s = None, _FIRST_PAUSE_S
