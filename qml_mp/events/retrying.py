"""Worker, supervisor: what may fail and is tried again: its growing pauses, and what is told of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import TryFailed, TryWorked
from qml_mp.units import doubled

_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 1.0  # with the jitter well below two seconds: by then what is due runs after an outage
_MAX_JITTER_S = 0.5
_MOST_TOLD = 10  # failures of an outage that differ: a text may hold a number that is another each time


class Retrying:
    """Used by one thread. Pauses have jitter, so that a fleet does not stampede a recovering storage."""

    def __init__(
        self,
        events: Emitter,
        *,
        fails: Callable[..., TryFailed] = TryFailed,
        works: TryWorked,
        rng: random.Random,
    ) -> None:
        """The facts: `fails` is called with the fields of `TryFailed`."""
        self._events = events
        self._fails = fails
        self._works = works
        self._rng = rng
        self._failures = 0
        self._told: set[tuple[str, str, str]] = set()
        """The different failures since the first of those in a row, as far as they were told."""
        self.not_before = 0.0
        """No try before this instant."""
        self.failing_since: float | None = None
        """The `now` of the first of the tries that have failed in a row; None: the newest has not."""

    @property
    def is_failing(self) -> bool:
        """Whether the newest try failed."""
        return self._failures > 0

    def failed(self, what: str, error: Exception, *, now: float = 0.0) -> float:
        """Tell that a try failed, with `what` as in `TryFailed`; the seconds from `now` to the next."""
        pause_s = doubled(_FIRST_PAUSE_S, self._failures, longest=_MAX_PAUSE_S)
        pause_s += self._rng.uniform(0, min(pause_s, _MAX_JITTER_S))
        self._failures += 1
        self.failing_since = now if self.failing_since is None else self.failing_since
        told = what, type(error).__name__, str(error)
        self._events.emit(
            self._fails(
                what=what,
                error=error,
                retry_in=timedelta(seconds=pause_s),
                is_repeated=told in self._told or len(self._told) >= _MOST_TOLD,
            )
        )
        if len(self._told) < _MOST_TOLD:
            self._told.add(told)
        self.not_before = now + pause_s
        return pause_s

    def worked(self) -> None:
        """Tell, if the try before failed, that this one has worked."""
        if self._failures:
            self._events.emit(self._works)
        self._told.clear()
        self._failures, self.not_before, self.failing_since = 0, 0.0, None
