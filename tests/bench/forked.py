"""Benchmark, limits: processes that a program forks to run a loop each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence


def fork_loops(number: int, loop: Callable[[int], None]) -> list[int]:
    """Fork so many, each of which runs the loop with its place among them, and ends; their pids."""
    return [_fork(loop, place) for place in range(number)]


def wait_for_all(pids: Sequence[int]) -> None:
    """Collect them."""
    for pid in pids:
        os.waitpid(pid, 0)


def _fork(loop: Callable[[int], None], place: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    loop(place)
    os._exit(0)
