"""Tests: supervisors killed over workers that are idle, asleep, in a Python loop and in C code (B4)."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass, field

from qml_mp.core.job import Job
from tests.nightly.ground import Ground, JournalTail, Watch, descendants, environment_of, fresh_ground
from tests.nightly.judge import Kills
from tests.nightly.report import Row, median_and_p99
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.processes.harness import Server, wait_until

_GRACES_S = (0.3, 0.3, 0.3, 2.0)
"""Mostly short, because a spinning orphan costs a processor all the while. The long one is long enough
for the second signal, which ends a Python loop by an exception."""
_WORKERS = 4
_LONGEST_S = 60.0
_BUSY = ("sleeper", "spinner")


@dataclass(kw_only=True)
class _Deaths:
    idle_ms: list[float] = field(default_factory=list)
    """From the kill to the death of each idle worker."""
    late_ms: list[float] = field(default_factory=list)
    """From the end of the grace to the death of the last process of the server."""
    broken: list[str] = field(default_factory=list)
    kills: Kills = field(default_factory=Kills)


def run_orphans(task: Task) -> Row:
    """Kill the supervisor of one server after the other; the next server runs its jobs again."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        deaths, tail = _Deaths(), JournalTail(ground)
        busy_id = ground.storage.enqueue(Job.new(ground.rng.choice(_BUSY)))
        holder_id = ground.storage.enqueue(Job.new("holder"))
        for turn in task.turns(task.count):
            _kill_once(ground, tail, (busy_id, holder_id), turn, deaths)
        findings = judge_ground(ground, expected=[], kills=deaths.kills)
        with contextlib.suppress(AssertionError):  # what is left for ever is told below
            # The guardian may have left behind a writer of outcomes, which has some seconds for that.
            wait_until(lambda: not ground.leftovers(), within_s=_LONGEST_S)
        figures = (
            median_and_p99("idle gone", deaths.idle_ms),
            median_and_p99("all gone after the grace", deaths.late_ms),
        )
        return task.row(
            done=deaths.kills.count, findings=findings, kills=deaths.kills.count, figures=", ".join(figures),
            broken=(*deaths.broken, *nothing_left(ground, claims=False)),
        )  # fmt: skip


def _kill_once(
    ground: Ground, tail: JournalTail, job_ids: tuple[str, str], turn: int, deaths: _Deaths
) -> None:
    grace_s = ground.rng.choice(_GRACES_S)
    settings = environment_of({"orphan_grace": grace_s, "max_crashes": 1000})
    server = ground.start(ground.server("-w", str(_WORKERS), **settings), ready=_WORKERS)
    ground.servers.remove(server)
    busy_pids = {
        wait_until(
            lambda job_id=job_id: tail.start_of(job_id, turn + 1),  # type: ignore[misc]
            within_s=_LONGEST_S,
            what=f"run {turn + 1} of {job_id}; {server.log()[-2000:]}",
        ).pid
        for job_id in job_ids
    }
    idle_pids = {info.process.pid for info in ground.workers(server)} - busy_pids
    deaths.kills.supervisors.add(server.pid)
    deaths.kills.count += 1
    _watch_them_die(server, idle_pids, grace_s, deaths)


def _watch_them_die(server: Server, idle_pids: set[int], grace_s: float, deaths: _Deaths) -> None:
    assert server.process is not None
    with Watch(descendants(server.pid)) as watch:
        killed_ns = time.monotonic_ns()
        server.signal(signal.SIGKILL)
        gone = watch.until_all_died(within_s=_LONGEST_S)
        server.process.wait()
        if not gone:
            deaths.broken.append(f"alive for ever after the supervisor: {watch.alive}")
            return
        deaths.idle_ms += [(watch.died_ns[pid] - killed_ns) / 1e6 for pid in idle_pids]
        deaths.late_ms.append((max(watch.died_ns.values()) - killed_ns) / 1e6 - grace_s * 1000)
