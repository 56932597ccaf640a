"""Benchmark: jobs that compute, against the same work in bare forked loops."""

from __future__ import annotations

from tests.bench.ground import Ground
from tests.bench.scenario import Column, Metrics, Options, Ratio, Scenario, Target
from tests.bench.system import Backend, System
from tests.bench.throughput import drain

_FEWEST = 200
"""So that the end, when one worker still runs its last job and the others have none, weighs little. Fewer
when a run is asked to be shorter than usual."""
_WANTED = {
    Backend.POSTGRES: {"1 ms": 0.85, "5 ms": 0.95, "50 ms": 0.98},
    Backend.SQLITE: {"1 ms": 0.90, "5 ms": 0.95, "50 ms": 0.98},
}


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    ms = float(case.split()[0])
    fewest = int(_FEWEST * min(1.0, options.seconds))
    jobs = max(fewest, int(options.workers * options.seconds * 1000 / ms))
    return drain(ground, system, workers=options.workers, jobs=jobs, kinds=[(ms, "spin")])


SCENARIO = Scenario(
    name="cpu",
    title="Jobs that compute: efficiency is their rate over that of bare forked loops",
    cases=("1 ms", "5 ms", "50 ms"),
    fits=lambda system: not system.name.startswith("statements"),
    measure=_measure,
    columns=(
        Column(metric="jobs_per_s", heading="jobs/s"),
        Column(metric="share", heading="busiest worker's share", digits=2),
        Column(metric="cpu_us", heading="CPU µs a job"),
        Column(metric="database_cpu_us", heading="PostgreSQL's"),
    ),
    ratios=(Ratio(heading="efficiency", metric="jobs_per_s", base="loops"),),
    targets=tuple(
        Target(
            system="qml-mp", backend=backend, metric="jobs_per_s", case=case, over="loops", at_least=at_least
        )
        for backend, cases in _WANTED.items()
        for case, at_least in cases.items()
    ),
)
