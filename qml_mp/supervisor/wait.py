"""Supervisor: the one place that waits: on pidfds, signals, storage wake-ups and the next due tick."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable

_LONGEST_WAIT_S = 60.0


def wait_for(fds: Iterable[int], *, until: float) -> frozenset[int]:
    """The descriptors that are readable (or closed at the other end), at the latest at `until`.

    `until` is on the monotonic clock; a passed one only looks. A signal's handler runs before
    this returns.
    """
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    timeout_s = min(max(0.0, until - time.monotonic()), _LONGEST_WAIT_S)
    # poll counts whole milliseconds; rounded up, so that what is due is due when it returns.
    return frozenset(fd for fd, _ in poll.poll(-(-timeout_s * 1000 // 1)))
