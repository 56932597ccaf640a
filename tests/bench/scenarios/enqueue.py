"""Benchmark: enqueueing, in bulk and one by one, each committed when the call returns."""

from __future__ import annotations

from tests.bench.ground import Ground
from tests.bench.scenario import Column, Metrics, Options, Ratio, Scenario, Target
from tests.bench.system import Backend, System

_BULK = 20_000
"""Fewer when a run is asked to be shorter than usual."""
_WARM_UP = 20


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    bulk = int(_BULK * min(1.0, options.seconds))
    with ground.run(system, workers=options.workers) as run:
        run.enqueue(_WARM_UP, how="single")
        single = run.enqueue(max(50, int(200 * options.seconds)), how="single")
        [(began, ended)] = run.enqueue(bulk)
    took_s = sum(ended - began for began, ended in single) / 1e9
    return {"single_per_s": len(single) / took_s, "bulk_per_s": bulk / ((ended - began) / 1e9)}


SCENARIO = Scenario(
    name="enqueue",
    title="Jobs enqueued per second",
    cases=("",),
    fits=lambda system: system.backend is not Backend.NONE,
    measure=_measure,
    columns=(
        Column(metric="bulk_per_s", heading=f"{_BULK:,} at a time"),
        Column(metric="single_per_s", heading="one at a time"),
    ),
    ratios=(
        Ratio(heading="bulk, of bare INSERTs", metric="bulk_per_s", base="statements-100"),
        Ratio(heading="single, of a bare INSERT", metric="single_per_s", base="statements-100"),
    ),
    targets=(
        Target(system="qml-mp", backend=Backend.POSTGRES, metric="bulk_per_s", case="", at_least=60_000),
        Target(system="qml-mp", backend=Backend.SQLITE, metric="bulk_per_s", case="", at_least=75_000),
        *(
            Target(
                system="qml-mp", backend=backend, metric="single_per_s", case="", over="statements-100",
                at_least=0.75,
            )
            for backend in (Backend.POSTGRES, Backend.SQLITE)
        ),
    ),
)  # fmt: skip
