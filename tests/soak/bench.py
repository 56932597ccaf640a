"""Tests: `python -m tests.soak.bench`: a few figures of speed as a small table. See scripts/bench."""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from tests.processes.harness import wait_for_state, wait_until
from tests.soak.__main__ import BACKENDS, open_postgres
from tests.soak.ground import Ground, descendants, environment_of, fresh_ground, pause
from tests.soak.recovery import measure
from tests.soak.report import median_and_p99

_IDLE_S = 10.0
_DONE_WITHIN_S = 900.0


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Speed of a server with 2 workers.")
    parser.add_argument("--jobs", type=int, default=20_000, help="empty jobs a run")
    parser.add_argument("--runs", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--kills", type=int, default=50, help="kills for the latency of recovery")
    parser.add_argument("--backend", choices=BACKENDS)
    arguments = parser.parse_args()
    backends = [arguments.backend] if arguments.backend else list(BACKENDS)
    rates: dict[str, list[float]] = {backend: [] for backend in backends}
    with open_postgres(backends) as postgres_url:
        for _ in range(arguments.runs):  # in turns, so that what else the machine does hits both
            for backend in backends:
                with fresh_ground(backend, postgres_url, seed=1) as ground:
                    rates[backend].append(_jobs_per_second(ground, arguments.jobs))
        others = {}
        for backend in backends:
            with fresh_ground(backend, postgres_url, seed=1) as ground:
                others[backend] = _other_figures(ground, arguments.kills)
    for backend in backends:
        runs = ", ".join(f"{rate:.0f}" for rate in rates[backend])
        rate = statistics.median(rates[backend])
        print(f"{backend:<9} {arguments.jobs} empty jobs, 2 workers   {rate:.0f} jobs/s (runs: {runs})")
        for what, figure in others[backend]:
            print(f"{backend:<9} {what:<29} {figure}")
    print(f"load average: {' '.join(f'{load:.2f}' for load in os.getloadavg())}")
    return 0


def _jobs_per_second(ground: Ground, jobs: int) -> float:
    """From the first start of a job to the last end of one, by the rows. Without the audit's triggers."""
    ground.audit.remove()
    ground.storage.enqueue_many(Job.new("nothing", {}) for _ in range(jobs))
    server = ground.server("-w", "2", "--burst").start(ready=None)
    code = server.wait(_DONE_WITHIN_S)
    assert code == 0, server.log()[-2000:]
    assert ground.storage.job_counts()[StateName.SUCCEEDED] == jobs
    return jobs / ground.audit.seconds_of_work()


def _other_figures(ground: Ground, kills: int) -> list[tuple[str, str]]:
    settings = environment_of({"max_crashes": 1000})
    server = ground.start(ground.server("-w", "2", **settings), ready=2)
    latencies = measure(ground, server, kills)
    job_id = ground.storage.enqueue(Job.new("price_of_a_check", {}))
    price = wait_for_state(ground.storage, job_id, StateName.SUCCEEDED).result
    wait_until(lambda: len(ground.workers(server)) == 2, what="two workers")
    pids = [server.pid, *descendants(server.pid)]
    before = sum(_cpu_s(pid) for pid in pids)
    pause(_IDLE_S)
    idle = (sum(_cpu_s(pid) for pid in pids) - before) / _IDLE_S
    assert server.stop() == 0
    return [
        ("SIGKILL to re-run", median_and_p99("median / p99", latencies.rerun_ms)),
        ("SIGKILL to replacement", median_and_p99("median / p99", latencies.ready_ms)),
        ("ctx.cancel.is_cancelled", f"{price:.2f} µs"),
        ("idle server, 4 processes", f"{idle * 100:.2f} % of a core"),
    ]


def _cpu_s(pid: int) -> float:
    text = Path(f"/proc/{pid}/stat").read_text()
    fields = text[text.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(main())
