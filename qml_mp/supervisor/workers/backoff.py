"""Supervisor, pure: how fast workers may be forked when they do not live."""

from __future__ import annotations

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 4.5  # so that a fixed app is noticed within five seconds


class BootBackoff:
    """After a worker that died without having been of use, one worker at a time is tried, after a
    pause that doubles; the first one that is ready ends it."""

    def __init__(self) -> None:
        self.failures = 0
        self._not_before = 0.0

    def failed(self, now: float) -> None:
        """A worker died before it was ready, or idle soon after."""
        pause_s = min(_FIRST_PAUSE_S * 2**self.failures, _LONGEST_PAUSE_S)
        self.failures += 1
        self._not_before = now + pause_s

    def succeeded(self) -> None:
        """A worker is ready."""
        self.failures = 0

    def allows(self, now: float, *, booting: int) -> bool:
        """Whether one more may be forked now, while `booting` are on their way."""
        return self.failures == 0 or (booting == 0 and now >= self._not_before)

    def next_at(self) -> float:
        """When the next try may be, after a failure."""
        return self._not_before if self.failures else float("inf")
