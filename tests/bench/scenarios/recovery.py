"""Benchmark: how soon the job of a killed worker runs again, and how soon the worker is replaced."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

from qml_mp.core.job import Job
from tests.bench.ground import Ground
from tests.bench.scenario import Column, Metrics, Options, Scenario, Target
from tests.bench.system import Backend, Kind, System
from tests.nightly.ground import Ground as StormGround
from tests.nightly.ground import JournalTail, environment_of, fresh_ground, pause
from tests.nightly.report import quantile
from tests.processes.harness import Server, wait_until

_WORKERS = 2
_LOOK_EVERY_S = 0.002
_LONGEST_S = 60.0


@dataclass(kw_only=True)
class _Latencies:
    """From SIGKILL, one entry for each kill."""

    rerun_ms: list[float] = field(default_factory=list)
    """To the line that the same job wrote when it began on the other worker."""
    ready_ms: list[float] = field(default_factory=list)
    """To the replacement's row in the registry, which a worker writes when it can take jobs."""


def _measure(ground: Ground, system: System, case: str, options: Options) -> Metrics:
    settings = environment_of({"max_crashes": 1000}) | dict(system.environment())
    latencies = _Latencies()
    with fresh_ground(system.backend, ground.postgres_url, seed=1) as own:
        server = own.start(own.server("-w", str(_WORKERS), **settings), ready=_WORKERS)
        tail = JournalTail(own)
        for _ in range(max(5, int(10 * options.seconds))):
            _kill_once(own, server, tail, latencies)
        assert server.stop() == 0
    return {
        "rerun_p50_ms": quantile(latencies.rerun_ms, 0.5),
        "rerun_max_ms": max(latencies.rerun_ms),
        "replaced_p50_ms": quantile(latencies.ready_ms, 0.5),
        "replaced_max_ms": max(latencies.ready_ms),
    }


def _kill_once(ground: StormGround, server: Server, tail: JournalTail, latencies: _Latencies) -> None:
    """One job, one kill of its worker, and the wait until all is as before."""
    wait_until(lambda: len(ground.workers(server)) == _WORKERS, within_s=_LONGEST_S, what="the workers")
    seen = max((number for number, _, _ in ground.audit.workers()), default=0)
    job_id = ground.storage.enqueue(Job.new("fatal_once", {}))
    first = wait_until(lambda: tail.start_of(job_id, 1), within_s=_LONGEST_S, what="the first run")
    pause(ground.rng.uniform(0.02, 0.15))
    killed_ns = time.monotonic_ns()
    os.kill(first.pid, signal.SIGKILL)
    rerun_ms = ready_ms = None
    deadline = time.monotonic() + _LONGEST_S
    while rerun_ms is None or ready_ms is None:
        again = tail.start_of(job_id, 2)
        if again is not None:
            rerun_ms = (again.at_ns - killed_ns) / 1e6
        if ready_ms is None and ground.audit.workers(after=seen):
            ready_ms = (time.monotonic_ns() - killed_ns) / 1e6
        if time.monotonic() > deadline:
            raise AssertionError(f"no recovery within {_LONGEST_S} s:\n{server.log()[-3000:]}")
        pause(_LOOK_EVERY_S)
    latencies.rerun_ms.append(rerun_ms)
    latencies.ready_ms.append(ready_ms)
    wait_until(lambda: not ground.audit.unfinished(), within_s=_LONGEST_S, what="the end of the job")


SCENARIO = Scenario(
    name="recovery",
    title=f"SIGKILL of a busy worker, with {_WORKERS} workers",
    cases=("",),
    fits=lambda system: system.kind is Kind.PROJECT,
    measure=_measure,
    columns=(
        Column(metric="rerun_p50_ms", heading="run again after, ms: p50", digits=1),
        Column(metric="rerun_max_ms", heading="worst", digits=1),
        Column(metric="replaced_p50_ms", heading="replaced after, ms: p50", digits=1),
        Column(metric="replaced_max_ms", heading="worst", digits=1),
    ),
    targets=tuple(
        Target(system="qml-mp", backend=backend, metric=metric, case="", at_most=at_most)
        for backend in (Backend.POSTGRES, Backend.SQLITE)
        for metric, at_most in (("rerun_p50_ms", 15.0), ("rerun_max_ms", 50.0))
    ),
)
