"""Benchmark: what a server costs without jobs: import, start, idling, memory, stop."""

from __future__ import annotations

from dataclasses import asdict

from tests.bench.ground import Ground
from tests.bench.life import WORKERS, measure
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.system import Backend, System
from tests.nightly.ground import fresh_ground

_ROUNDS = 3
_AT_MOST = {
    "import_ms": 60.0,
    "all_ready_s": 0.6,
    "stop_s": 0.15,
    "idle_percent_of_a_core": 0.2,
    "idle_statements_per_s": 2.0,
}
_WORKER_PSS_MB = {Backend.POSTGRES: 10.0, Backend.SQLITE: 9.5}


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    with fresh_ground(system.backend, ground.postgres_url, seed=1) as own:
        own.audit.remove()
        figures = measure(own.url, own.folder, rounds=_ROUNDS, idle_s=10 * options.seconds)
    return {name: value for name, value in asdict(figures).items() if value is not None}


SCENARIO = Scenario(
    name="life",
    title=f"A server without jobs, {WORKERS} workers",
    cases=("",),
    fits=lambda system: system.name == "qml-mp",
    measure=_measure,
    columns=(
        Column(metric="import_ms", heading="import, ms"),
        Column(metric="all_ready_s", heading="all ready, s", digits=2),
        Column(metric="stop_s", heading="stop, s", digits=2),
        Column(metric="idle_percent_of_a_core", heading="idle, % of a core", digits=2),
        Column(metric="idle_statements_per_s", heading="statements/s", digits=1),
        Column(metric="worker_pss_mb", heading="worker's PSS, MB", digits=1),
        Column(metric="all_pss_mb", heading="of all", digits=1),
    ),
    targets=tuple(
        Target(system="qml-mp", backend=backend, metric=metric, case="", at_most=at_most)
        for backend in (Backend.POSTGRES, Backend.SQLITE)
        for metric, at_most in (*_AT_MOST.items(), ("worker_pss_mb", _WORKER_PSS_MB[backend]))
    ),
)
