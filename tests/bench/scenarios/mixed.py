"""Benchmark: many short jobs and now and then a long one. Does a short one wait behind a long one?"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import accumulate

from tests.bench.ground import Ground, RunFailed
from tests.bench.records import Record, read_records, wait_for_records
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.system import Backend, System

_WORKERS = 4
_SHORT_MS, _SHORT_JOBS = 1.0, 200
_LONG_MS = 2000.0
_HOW = {"long jobs sleep": "sleep", "long jobs hold the GIL": "hold"}
_WITHIN_S = 180.0


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    kinds = [(_SHORT_MS, "spin")] * _SHORT_JOBS + [(_LONG_MS, _HOW[case])]
    jobs = len(kinds) * max(1, int(8 * options.seconds))
    with ground.run(system, workers=_WORKERS, has_records=True) as run:
        run.enqueue(jobs, kinds)
        run.settle()
        run.start_workers()
        wait_for_records(run, jobs, within_s=_WITHIN_S)
        records = sorted(read_records(run.place), key=lambda record: record.seq)
    if len(records) != jobs:
        raise RunFailed(f"{jobs} jobs were enqueued, and {len(records)} ran.")
    took_s = (max(job.ended_ns for job in records) - min(job.began_ns for job in records)) / 1e9
    waits_ms = [
        wait for job, wait in zip(records, _waits_ms(records), strict=True) if (job.seq + 1) % len(kinds)
    ]
    return {
        "took_s": took_s,
        "of_ideal": took_s / _ideal_s([(job.ended_ns - job.began_ns) / 1e9 for job in records]),
        "worst_wait_ms": max(waits_ms),
        "late": sum(wait > 150 for wait in waits_ms),
    }


def _waits_ms(records: Sequence[Record]) -> list[float]:
    """How long each job began after one that was enqueued later. That of the last is 0."""
    later = list(accumulate((job.began_ns for job in reversed(records)), min))[::-1]
    return [max(0.0, (job.began_ns - first) / 1e6) for job, first in zip(records, later, strict=True)]


def _ideal_s(durations_s: Sequence[float]) -> float:
    """If each job, as long as it took, were taken in order by the first worker that is free, at no cost."""
    free_at = [0.0] * _WORKERS
    for duration in durations_s:
        heapq.heapreplace(free_at, free_at[0] + duration)
    return max(free_at)


def _target(backend: Backend, metric: str, case: str, at_most: float) -> Target:
    return Target(system="qml-mp", backend=backend, metric=metric, case=case, at_most=at_most)


SCENARIO = Scenario(
    name="mixed",
    title=f"Mixed load: a job of 2 s after every {_SHORT_JOBS} of 1 ms, {_WORKERS} workers",
    cases=tuple(_HOW),
    fits=lambda system: not system.name.startswith(("statements", "exchange")),
    measure=_measure,
    columns=(
        Column(metric="took_s", heading="s", digits=2),
        Column(metric="of_ideal", heading="of the ideal schedule", digits=2),
        Column(metric="worst_wait_ms", heading="worst wait of a short job, ms"),
        Column(metric="late", heading="that waited over 150 ms"),
    ),
    targets=tuple(
        _target(backend, metric, case, at_most)
        for backend in (Backend.POSTGRES, Backend.SQLITE)
        for case in _HOW
        for metric, at_most in (("of_ideal", 1.1), ("worst_wait_ms", 150.0))
    ),
)
