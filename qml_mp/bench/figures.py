"""Client: what was measured, as values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Self


class Measure(StrEnum):
    """What can be measured, in this order."""

    STORAGE = "storage"
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    EFFICIENCY = "efficiency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How long something takes that was done many times."""

    p50: timedelta
    p99: timedelta
    samples: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Of at least one sample."""
        ordered = sorted(seconds)
        p50, p99 = (timedelta(seconds=_nearest_rank(ordered, share)) for share in (0.5, 0.99))
        return cls(p50=p50, p99=p99, samples=len(ordered))


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageFigures:
    """The storage as one connection of a client finds it."""

    read: Spread
    """One row, looked for by its key: the way to the database and back."""
    commit: Spread
    """One job enqueued."""
    bulk_per_s: float
    """Jobs enqueued, many in a transaction."""
    caveats: tuple[str, ...]

    @property
    def flush(self) -> timedelta:
        """About what the write and its way to the disk take of a commit."""
        return max(self.commit.p50 - self.read.p50, timedelta())


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputFigures:
    """Empty jobs, from the first begin to the last end."""

    batch: int
    """`fetch_batch_size`: the most that a worker claims in one commit."""
    jobs: int
    jobs_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EfficiencyFigures:
    """Jobs that keep a core busy, against the same work in as many processes that do nothing else."""

    length: timedelta
    """Of one job's work."""
    jobs: int
    """In each round."""
    ratio: float
    """The time of the bare processes divided by that of the workers; median of the rounds."""
    overhead: timedelta
    """What a job costs a worker beside its work; median of the rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one run; what was not asked for is None or empty."""

    storage: StorageFigures | None = None
    throughput: tuple[ThroughputFigures, ...] = ()
    latency: Spread | None = None
    """From a committed enqueue to the start of the job on an idle server."""
    efficiency: tuple[EfficiencyFigures, ...] = ()


def _nearest_rank(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
