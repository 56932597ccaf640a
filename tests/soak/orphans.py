"""Tests: supervisors killed over workers that are idle, asleep, in a Python loop and in C code (B4)."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass, field

from qml_mp.core.job import Job
from tests.processes.harness import Server, wait_until
from tests.soak.ground import Ground, JournalTail, Watch, descendants, environment_of
from tests.soak.judge import Findings, Kills
from tests.soak.report import Row, median_and_p99, quantile
from tests.soak.scenario import Task, judge_ground, merged, nothing_left

_GRACES_S = (0.3, 0.3, 0.3, 2.0)
"""Mostly short, because a spinning orphan costs a processor all the while. The long one is long enough
for the second signal, which ends a Python loop by an exception."""
_IDLE_P99_MS = 100.0
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
    missed: list[str] = field(default_factory=list)
    kills: Kills = field(default_factory=Kills)


def run_orphans(task: Task) -> Row:
    """Each kill on a server of its own, whose jobs the next one of the lane runs again."""
    lanes = task.in_lanes(lambda ground, count: _lane(task, ground, count))
    idle_ms = [value for deaths, _ in lanes for value in deaths.idle_ms]
    late_ms = [value for deaths, _ in lanes for value in deaths.late_ms]
    kills = sum(deaths.kills.count for deaths, _ in lanes)
    missed = [text for deaths, _ in lanes for text in deaths.missed]
    if (high := quantile(idle_ms, 0.99)) > _IDLE_P99_MS:
        missed.append(f"p99 of idle: {high:.1f} ms, wanted {_IDLE_P99_MS:.0f} ms")
    return task.row(
        done=kills,
        findings=merged([findings for _, findings in lanes]),
        kills=kills,
        figures=", ".join(
            (median_and_p99("idle gone", idle_ms), median_and_p99("all gone after the grace", late_ms))
        ),
        broken=tuple(text for deaths, _ in lanes for text in deaths.broken),
        missed=tuple(missed),
    )


def _lane(task: Task, ground: Ground, count: int) -> tuple[_Deaths, Findings]:
    deaths = _Deaths()
    tail = JournalTail(ground)
    busy_id = ground.storage.enqueue(Job.new(ground.rng.choice(_BUSY)))
    holder_id = ground.storage.enqueue(Job.new("holder"))
    for turn in task.turns(count):
        _kill_once(ground, tail, (busy_id, holder_id), turn, deaths)
    findings = judge_ground(ground, expected=[], kills=deaths.kills)
    with contextlib.suppress(AssertionError):  # what is left for ever is told below
        # The guardian may have left behind whoever writes what had ended, which has some seconds for that.
        wait_until(lambda: not ground.leftovers(), within_s=_LONGEST_S)
    deaths.broken += nothing_left(ground, claims=False)
    return deaths, findings


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
        in_time = watch.until_all_died(within_s=grace_s + 1)
        gone = in_time or watch.until_all_died(within_s=_LONGEST_S)
        server.process.wait()
        if not gone:
            deaths.broken.append(f"alive for ever after the supervisor: {watch.alive}")
            return
        if not in_time:
            deaths.missed.append(f"processes were alive {grace_s + 1} s after their supervisor")
        deaths.idle_ms += [(watch.died_ns[pid] - killed_ns) / 1e6 for pid in idle_pids]
        deaths.late_ms.append((max(watch.died_ns.values()) - killed_ns) / 1e6 - grace_s * 1000)
