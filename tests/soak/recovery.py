"""Tests: how soon a killed worker's job runs again on another one, and how soon it is replaced (B1)."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field

from qml_mp.core.job import Job
from qml_mp.core.server_info import WorkerInfo
from tests.processes.harness import Server, wait_until
from tests.soak.ground import Ground, JournalTail, environment_of, fresh_ground, pause
from tests.soak.judge import Kills
from tests.soak.report import Row, median_and_p99, quantile
from tests.soak.scenario import Task, judge_ground, nothing_left

_RERUN_MEDIAN_MS, _RERUN_P99_MS, _READY_P99_MS = 50.0, 150.0, 250.0
_LOOK_EVERY_S = 0.002
_LONGEST_S = 60.0


@dataclass(kw_only=True)
class Latencies:
    """From SIGKILL, one entry a kill."""

    rerun_ms: list[float] = field(default_factory=list)
    """To the line that the same job wrote when it began on the other worker."""
    ready_ms: list[float] = field(default_factory=list)
    """To the replacement's row in the registry, which a worker writes when it can take jobs."""


def run_recovery(task: Task) -> Row:
    """Kills of the busy one of two workers."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        server = ground.start(ground.server("-w", "2", **environment_of({"max_crashes": 1000})), ready=2)
        kills, latencies = Kills(), Latencies()
        ids: list[str] = []
        tail = JournalTail(ground)
        ids += (_kill_once(ground, server, tail, kills, latencies) for _ in task.turns(task.count))
        broken = () if server.stop() == 0 else ("the server did not stop with 0",)
        findings = judge_ground(ground, expected=ids, kills=kills)
        return task.row(
            done=len(ids),
            findings=findings,
            kills=kills.count,
            figures=", ".join(
                (
                    median_and_p99("re-run", latencies.rerun_ms),
                    median_and_p99("replaced", latencies.ready_ms),
                )
            ),
            broken=(*broken, *nothing_left(ground)),
            missed=_missed(latencies),
        )


def measure(ground: Ground, server: Server, kills: int) -> Latencies:
    """So many kills on a running server with two workers, for whoever wants the figures alone."""
    latencies, tail = Latencies(), JournalTail(ground)
    for _ in range(kills):
        _kill_once(ground, server, tail, Kills(), latencies)
    return latencies


def _kill_once(ground: Ground, server: Server, tail: JournalTail, kills: Kills, latencies: Latencies) -> str:
    """One job, one kill, and the wait until all is as before; the job's id."""
    workers = wait_until(lambda: _two(ground, server), within_s=_LONGEST_S, what="two workers")
    seen = max((n for n, _, _ in ground.audit.workers()), default=0)
    job_id = ground.storage.enqueue(Job.new("fatal_once", {}))
    first = wait_until(lambda: tail.start_of(job_id, 1), within_s=_LONGEST_S, what="the first run")
    pause(ground.rng.uniform(0.02, 0.15))
    victim = next(info for info in workers if info.process.pid == first.pid)
    kills.workers.add(victim.id)
    kills.count += 1
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
    return job_id


def _two(ground: Ground, server: Server) -> list[WorkerInfo] | None:
    workers = ground.workers(server)
    return workers if len(workers) == 2 else None


def _missed(latencies: Latencies) -> tuple[str, ...]:
    figures = (
        ("median of re-runs", quantile(latencies.rerun_ms, 0.5), _RERUN_MEDIAN_MS),
        ("p99 of re-runs", quantile(latencies.rerun_ms, 0.99), _RERUN_P99_MS),
        ("p99 of replacements", quantile(latencies.ready_ms, 0.99), _READY_P99_MS),
    )
    return tuple(
        f"{what}: {value:.1f} ms, wanted {wanted:.0f} ms" for what, value, wanted in figures if value > wanted
    )
