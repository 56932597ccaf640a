"""Benchmark: jobs that wait, and how fast they are run. What several scenarios do."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.ground import Ground
from tests.bench.scenario import Metrics
from tests.bench.system import System
from tests.bench.watch import TooShort

MOST_JOBS = 60_000
"""Of those that are over too soon, no more are tried."""


def drain(
    ground: Ground,
    system: System,
    *,
    workers: int,
    jobs: int,
    kinds: Sequence[tuple[float, str]] = ((0.0, "spin"),),
) -> Metrics:
    """Enqueue so many jobs, start the workers and time them, again with more when they are over too soon."""
    try:
        with ground.run(system, workers=workers) as run:
            run.enqueue(jobs, kinds)
            run.settle()
            drained = run.drain(jobs)
    except TooShort:
        if jobs >= MOST_JOBS:
            raise
        return drain(ground, system, workers=workers, jobs=4 * jobs, kinds=kinds)
    timing = drained.timing
    used = {"cpu_us": drained.cpu_us, "database_cpu_us": drained.database_cpu_us}
    return {
        "jobs_per_s": timing.jobs_per_s,
        "jobs": timing.jobs,
        "processes": timing.processes,
        "share": timing.share,
        **{name: value for name, value in used.items() if value is not None},
    }
