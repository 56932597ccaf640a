"""Client and worker: when each job began and ended, in memory that they share."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qml_mp.errors import QmlError

MOST_JOBS = 50_000
_BYTES = 8  # of a double
_PER_JOB = 2
_LOOK_EVERY_S = 0.002
_LONGEST_SILENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From the first job's begin to the last one's end, in seconds of the monotonic clock."""

    began_s: float
    ended_s: float

    @property
    def length_s(self) -> float:
        """What lies between."""
        return self.ended_s - self.began_s


class Stamps:
    """Places for `MOST_JOBS` jobs, each written by the process that runs the job and read by the one that has
    made them before it forked. No message and no storage is needed, so that taking the time costs nothing."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, MOST_JOBS * _PER_JOB * _BYTES)
        self._instants = memoryview(self._memory).cast("d")

    def forget(self, jobs: int) -> None:
        """Before a round: none of the first so many jobs has begun."""
        self._memory[: jobs * _PER_JOB * _BYTES] = bytes(jobs * _PER_JOB * _BYTES)

    def begin(self, place: int) -> None:
        """The job at this place begins."""
        self._instants[_PER_JOB * place] = time.monotonic()

    def end(self, place: int) -> None:
        """The job at this place has done its work."""
        self._instants[_PER_JOB * place + 1] = time.monotonic()

    def wait_for(self, jobs: int, *, runs: Callable[[], bool] = lambda: True) -> None:
        """Until the first so many have ended. Raises `QmlError` when what runs them is gone, or none of them
        ends for half a minute."""
        ended = 0
        give_up_at = time.monotonic() + _LONGEST_SILENCE_S
        while ended < jobs:
            time.sleep(_LOOK_EVERY_S)
            before, ended = ended, self._ended(jobs, known=ended)
            if ended > before:
                give_up_at = time.monotonic() + _LONGEST_SILENCE_S
            elif not runs():
                raise QmlError("The server that was measured has ended; what it printed says why.")
            elif time.monotonic() > give_up_at:
                raise QmlError(f"No job has ended for {_LONGEST_SILENCE_S:.0f} seconds.")

    def span(self, jobs: int) -> Span:
        """Of a round of so many jobs that have all ended."""
        instants: Sequence[float] = self._instants[: _PER_JOB * jobs].tolist()
        return Span(began_s=min(instants[::_PER_JOB]), ended_s=max(instants[1::_PER_JOB]))

    def _ended(self, jobs: int, *, known: int) -> int:
        """How many have ended, counted up to the first that has not; so many are known to have."""
        while known < jobs and self._instants[_PER_JOB * known + 1]:
            known += 1
        return known
