"""Both ends of what workers count of their troubles, in memory that they share with their supervisor.

A worker adds to a record of its own, and one that is given the same record later goes on from there: so
nothing is lost when a worker is killed, and nobody has to add up at deaths.
"""

from __future__ import annotations

import mmap

from qml_mp.events.facts import ClaimLost, Event, TryFailed
from qml_mp.settings import MOST_WORKERS

_LOST_CLAIMS, _STORAGE_ERRORS, _WORDS = 0, 1, 2
_WORD_BYTES = 8
_RECORDS = 2 * MOST_WORKERS


class TroubleTable:
    """The mapping with all records. Made before the first fork; freed with the last process."""

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, _RECORDS * _WORDS * _WORD_BYTES)).cast("Q")

    @property
    def lost_claims(self) -> int:
        """Of all workers since the start (supervisor)."""
        return sum(self._words[_LOST_CLAIMS::_WORDS])

    @property
    def storage_errors(self) -> int:
        """The same: tries of workers that failed because of storage."""
        return sum(self._words[_STORAGE_ERRORS::_WORDS])

    def of(self, index: int) -> WorkerTroubles:
        """The record of the worker with this slot."""
        return WorkerTroubles(self._words, index * _WORDS)


class WorkerTroubles:
    """A subscriber in the worker, which alone writes there."""

    def __init__(self, words: memoryview[int], at: int) -> None:
        self._words = words
        self._at = at

    def count(self, event: Event) -> None:
        """Told of each fact."""
        match event:
            case ClaimLost():
                self._words[self._at + _LOST_CLAIMS] += 1
            case TryFailed():
                self._words[self._at + _STORAGE_ERRORS] += 1
            case _:
                pass
