"""Supervisor: one thing that may fail and is tried again: its growing pauses, and what the log says of it.

The log has one line for each change of state (it fails, it fails in another way, it works again); the
tries in between are told at DEBUG.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from typing import TypeVar

from qml_mp.errors import QmlError, StorageError, StorageUnreachable
from qml_mp.events.retrying import pause_before_next_try_s

_Item = TypeVar("_Item")

logger = logging.getLogger(__name__)


class Retrying:
    """Owned by the supervisor's one thread; instants are on the monotonic clock."""

    def __init__(self, *, fails: str, works: str, rng: random.Random) -> None:
        """`fails` and `works` are what the log says, such as "The cleanup loop failed"."""
        self._fails = fails
        self._works = works
        self._rng = rng
        self._failures = 0
        self._said: str | None = None
        self.not_before = 0.0
        """No try before this instant."""

    @property
    def is_failing(self) -> bool:
        """Whether the newest try failed."""
        return self._failures > 0

    def failed(self, error: Exception, *, now: float) -> None:
        """Note that a try failed, and when the next one may be."""
        pause_s = pause_before_next_try_s(self._failures, self._rng)
        self._failures += 1
        self.not_before = now + pause_s
        text = f"{type(error).__name__}: {error}"
        level = logging.DEBUG if text == self._said else logging.WARNING
        self._said = text
        unexpected = None if isinstance(error, QmlError) or level == logging.DEBUG else error
        logger.log(
            level, "%s and is tried again in %.1f s: %s", self._fails, pause_s, error, exc_info=unexpected
        )

    def worked(self) -> None:
        """Note that a try worked."""
        if self._failures:
            logger.info("%s", self._works)
        self._failures, self._said, self.not_before = 0, None, 0.0


def each_by_itself(items: Iterable[_Item], action: Callable[[_Item], None]) -> None:
    """Do it for each; what storage refuses about one of them keeps no other waiting.

    The first refusal is raised when all are through; a storage that cannot be reached ends it at once.
    """
    refused: StorageError | None = None
    for item in items:
        try:
            action(item)
        except StorageUnreachable:
            raise
        except StorageError as error:
            refused = refused or error
    if refused is not None:
        raise refused
