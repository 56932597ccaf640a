"""Benchmark: times the growth of the file to which every job appends one byte."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_LOOK_EVERY_MS = 2
_ASK_EVERY = 100
_WARM_SHARE = 0.25
"""A process that runs its first job later than this share of all counts as late work, not as a late start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """From the moment at which every process has run a job to the last one."""

    jobs: int
    seconds: float
    processes: int
    """That ran jobs at all."""
    share: float
    """Of the busiest of them."""

    @property
    def jobs_per_s(self) -> float:
        return self.jobs / self.seconds


class TooShort(ValueError):
    """All was over between two looks."""


class Watcher:
    """Looks at the file's size every two milliseconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.touch()
        self._samples = [(time.monotonic_ns(), 0)]

    def wait(self, count: int, *, within_s: float, is_hopeless: Callable[[], bool]) -> int:
        """Until the file has so many bytes; how many it has then: fewer when time or hope has run out."""
        deadline = time.monotonic() + within_s
        size, looked = self._samples[-1][1], 0
        while size < count and time.monotonic() < deadline:
            select.select([], [], [], _LOOK_EVERY_MS / 1000)
            looked += 1
            ended = looked % _ASK_EVERY == 0 and is_hopeless()
            grown = os.stat(self._path).st_size
            if grown > size:
                size = grown
                self._samples.append((time.monotonic_ns(), size))
            if ended:
                break
        return size

    def timing(self) -> Timing:
        """Of what was written while `wait` looked; raises `TooShort` when that is too little to be timed."""
        last_ns, total = self._samples[-1]
        data = self._path.read_bytes()[:total]
        warm = max((data.index(byte) for byte in set(data)), default=0)
        if warm > total * _WARM_SHARE:
            warm = 0
        first_ns, before = next((at, size) for at, size in self._samples if size > warm or size == total)
        if last_ns <= first_ns:
            raise TooShort(f"{total} jobs ran within {_LOOK_EVERY_MS} ms, which is too short to be timed.")
        measured = data[before:]
        return Timing(
            jobs=len(measured),
            seconds=(last_ns - first_ns) / 1e9,
            processes=len(set(data)),
            share=max(measured.count(byte) for byte in set(measured)) / len(measured),
        )
