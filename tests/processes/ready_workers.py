"""Tests: how many workers were ready at each moment of a server's life, as its log tells."""

from __future__ import annotations

import re
from itertools import accumulate


def ready_counts(log: str) -> list[int]:
    """How many workers were ready, after each one that became so and each such that left, in order."""
    ready: set[str] = set()
    counts = []
    for line in log.splitlines():
        if found := re.search(r"Worker \d+ is ready \(pid (\d+)\)", line):
            ready.add(found[1])
        elif (found := re.search(r"Worker \d+ stopped \(pid (\d+)\)", line)) and found[1] in ready:
            ready.remove(found[1])
        else:
            continue
        counts.append(len(ready))
    return counts


def counts_since_all_were(log: str, full: int) -> list[int]:
    """The counts from when so many workers were ready first until the server was told to stop."""
    counts = ready_counts(log.partition("Stopping (")[0])
    return counts[counts.index(full) :]


def most_processes(log: str) -> int:
    """How many workers there were at once, at most."""
    changes = re.findall(r"Worker \d+ (started|stopped) \(pid", log)
    return max(accumulate(1 if change == "started" else -1 for change in changes))
