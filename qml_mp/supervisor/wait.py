"""Supervisor, guardian and host: the one place that waits: on pidfds, signals, storage wake-ups and the
next due instant."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Mapping

_LONGEST_WAIT_S = 60.0
_STANDSTILL_S = 1.0


class TimeSeen:
    """How long something has taken, as seen by looks that come several a second. Where they did not, this
    process stood still (a paused container or machine, say), and what it waits for did so, too."""

    def __init__(self, now: float) -> None:
        self._looked_at = now
        self._seconds = 0.0

    def look(self, now: float) -> float:
        """In seconds, up to this look."""
        self._seconds += min(now - self._looked_at, _STANDSTILL_S)
        self._looked_at = now
        return self._seconds


def wait_for(fds: Iterable[int], *, until: float) -> frozenset[int]:
    """The descriptors that are readable (or closed at the other end), at the latest at `until`.

    `until` is on the monotonic clock; a passed one only looks. A signal's handler runs before
    this returns.
    """
    return frozenset(poll_until(dict.fromkeys(fds, select.POLLIN), until=until))


def poll_until(events: Mapping[int, int], *, until: float) -> dict[int, int]:
    """`wait_for` for several kinds of events, as `select.poll` names them: by descriptor, what came."""
    poll = select.poll()
    for fd, wanted in events.items():
        poll.register(fd, wanted)
    timeout_s = min(max(0.0, until - time.monotonic()), _LONGEST_WAIT_S)
    # poll counts whole milliseconds; rounded up, so that what is due is due when it returns.
    return dict(poll.poll(-(-timeout_s * 1000 // 1)))
