"""Benchmark: how soon a killed worker's job runs again; what a look for a cancel costs, and what idling."""

from __future__ import annotations

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from tests.bench.cpu import cpu_s_of_programs
from tests.bench.ground import Ground
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.system import Backend, Kind, System
from tests.processes.harness import Server, wait_for_state, wait_until
from tests.soak.ground import environment_of, fresh_ground, pause
from tests.soak.recovery import measure
from tests.soak.report import quantile

_IDLE_S = 10.0
_WORKERS = 2


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    settings = environment_of({"max_crashes": 1000}) | dict(system.environment())
    with fresh_ground(system.backend, ground.postgres_url, seed=1) as own:
        server = own.start(own.server("-w", str(_WORKERS), **settings), ready=_WORKERS)
        latencies = measure(own, server, max(5, int(10 * options.seconds)))
        job_id = own.storage.enqueue(Job.new("price_of_a_check", {}))
        price_us = wait_for_state(own.storage, job_id, StateName.SUCCEEDED).result
        assert isinstance(price_us, float)
        wait_until(lambda: len(own.workers(server)) == _WORKERS, what="the workers")
        idle = _idle_cores(server)
        assert server.stop() == 0
    return {
        "rerun_p50_ms": quantile(latencies.rerun_ms, 0.5),
        "rerun_p99_ms": quantile(latencies.rerun_ms, 0.99),
        "replaced_p50_ms": quantile(latencies.ready_ms, 0.5),
        "replaced_p99_ms": quantile(latencies.ready_ms, 0.99),
        "check_us": price_us,
        "idle_percent": 100 * idle,
    }


def _idle_cores(server: Server) -> float:
    """What its processes use while there is nothing to do."""
    before = cpu_s_of_programs((server.pid,))
    pause(_IDLE_S)
    return (cpu_s_of_programs((server.pid,)) - before) / _IDLE_S


SCENARIO = Scenario(
    name="recovery",
    title=f"SIGKILL of a busy worker, and a server that has nothing to do, with {_WORKERS} workers",
    cases=("",),
    fits=lambda system: system.kind is Kind.PROJECT,
    measure=_measure,
    columns=(
        Column(metric="rerun_p50_ms", heading="run again after, ms: p50", digits=1),
        Column(metric="rerun_p99_ms", heading="p99", digits=1),
        Column(metric="replaced_p50_ms", heading="replaced after, ms: p50", digits=1),
        Column(metric="replaced_p99_ms", heading="p99", digits=1),
        Column(metric="check_us", heading="ctx.cancel.is_cancelled, µs", digits=2),
        Column(metric="idle_percent", heading="idle, % of a core", digits=2),
    ),
    targets=tuple(
        Target(system="qml-mp", backend=backend, metric=metric, case="", at_most=at_most)
        for backend in (Backend.POSTGRES, Backend.SQLITE)
        for metric, at_most in (("rerun_p50_ms", 50.0), ("rerun_p99_ms", 150.0))
    ),
)
