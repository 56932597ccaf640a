"""Supervisor: whether the kernel's OOM killer has just killed on this machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from qml_mp import host
from qml_mp.clock import Clock

_LOOK_EVERY_S = 1.0


class OomWatch:
    """Compares the kernel's count of its kills with that of a moment ago, so that a worker's SIGKILL is
    not taken for one of its kills that was somebody else's, long before."""

    def __init__(self, clock: Clock, *, count: Callable[[], int | None] = host.oom_kills) -> None:
        self._clock = clock
        self._count = count
        # Two: the newer one may have been read between the kill and the death that came of it.
        self._seen = deque([count()], maxlen=2)
        self._look_at = clock.monotonic() + _LOOK_EVERY_S

    def look(self) -> None:
        """Read the count; at most once a second, however often it is called."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_EVERY_S
            self._seen.append(self._count())

    def struck(self) -> bool:
        """Whether it killed within the last second or two. False where the kernel does not tell."""
        now, before = self._count(), self._seen[0]
        return None not in (now, before) and now != before
