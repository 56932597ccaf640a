"""Benchmark: does it lose by more workers than there are cores?"""

from __future__ import annotations

from itertools import pairwise

from tests.bench.ground import Ground
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.scenarios.empty import jobs_for
from tests.bench.system import Backend, Kind, System
from tests.bench.throughput import drain

_WORKERS = (1, 2, 4, 8, 16)
_MS = {"empty jobs": 0.0, "1 ms": 1.0}


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    metrics = {}
    for workers in _WORKERS:
        jobs = jobs_for(system, options.seconds) if case == "empty jobs" else int(2000 * options.seconds)
        result = drain(ground, system, workers=workers, jobs=jobs, kinds=[(_MS[case], "spin")])
        metrics[str(workers)] = result["jobs_per_s"]
    steps = {_step(more): metrics[str(more)] / metrics[str(fewer)] for fewer, more in pairwise(_WORKERS)}
    return metrics | steps


def _step(more: int) -> str:
    return f"step to {more}"


SCENARIO = Scenario(
    name="scale",
    title="Jobs per second with 1, 2, 4, 8 and 16 workers",
    cases=tuple(_MS),
    fits=lambda system: system.kind is Kind.PROJECT,
    measure=_measure,
    columns=(
        *(Column(metric=str(workers), heading=str(workers)) for workers in _WORKERS),
        *(Column(metric=_step(workers), heading=_step(workers), digits=2) for workers in _WORKERS[1:]),
    ),
    targets=tuple(
        Target(system="qml-mp", backend=backend, metric=_step(workers), case=case, at_least=0.9)
        for backend in (Backend.POSTGRES, Backend.SQLITE)
        for case in _MS
        for workers in _WORKERS[1:]
    ),
)
