"""Tests: a limit on what runs, under fire, and a rate, each over three supervisors of four workers (C6)."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from bisect import bisect_left
from datetime import timedelta

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind, Rate
from qml_mp.core.state import StateName
from tests.audit import Transition
from tests.processes.harness import wait_until
from tests.processes.journal import Line
from tests.soak.ground import Ground, environment_of, fresh_ground, pause
from tests.soak.judge import Kills
from tests.soak.report import Row
from tests.soak.scenario import Task, judge_ground, nothing_left
from tests.storage.helpers import set_limit

_SUPERVISORS, _WORKERS = 3, 4
_PLACES = 3
_PER_SECOND = 50
_MOST_IN_A_SECOND = 60
_KILL_EVERY_S = 0.2
_STUCK_AFTER_S = 120.0


def run_places(task: Task) -> Row:
    """Jobs of a queue of which three may run at a time, while a random worker is killed every 200 ms."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        set_limit(ground.storage, LimitKind.QUEUE, "default", max_running=_PLACES)
        ids = ground.storage.enqueue_many(Job.new("unit", {"busy_s": 0.002}) for _ in range(task.count))
        _start(ground, **environment_of({"max_crashes": 1000}))
        kills = _fight(task, ground)
        broken = _stop(ground)
        expected = (
            ids if not task.time_is_up else [job.id for job in ground.audit.jobs() if job.state.is_final]
        )
        findings = judge_ground(ground, expected=expected, kills=kills)
        claimed, ran = _most_claimed(ground.audit.transitions()), _most_at_a_time(ground.journal())
        if claimed != _PLACES or ran > _PLACES:
            broken += (f"{claimed} were claimed and {ran} ran at a time",)
        return task.row(
            done=task.count - ground.audit.unfinished(),
            findings=findings,
            kills=kills.count,
            figures=f"{claimed} claimed, {ran} ran at a time",
            broken=(*broken, *nothing_left(ground)),
        )


def run_rate(task: Task) -> Row:
    """For so many seconds, jobs of a queue with a rate of 50/s, of which there are always enough."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        set_limit(ground.storage, LimitKind.QUEUE, "default", rate=Rate(_PER_SECOND, timedelta(seconds=1)))
        _start(ground)
        ids = ground.storage.enqueue_many(Job.new("unit") for _ in range(2 * _PER_SECOND * (task.count + 1)))
        wait_until(ground.journal, what="the first job")
        time.sleep(task.count + 1)  # what begins in that time is what is measured
        broken = _stop(ground)
        # Of the claims, by the storage's clock: jobs that were let in one by one may run at once, when their
        # workers have waited for a processor.
        jobs = [job for job_id in ids if (job := ground.storage.get(job_id)) is not None]
        starts = sorted(job.started_at.timestamp() for job in jobs if job.started_at is not None)
        within = bisect_left(starts, starts[0] + task.count)
        most = max(bisect_left(starts, at + 1) - place for place, at in enumerate(starts))
        if most > _MOST_IN_A_SECOND:
            broken += (f"{most} began within one second",)
        wanted = _PER_SECOND * task.count
        missed = () if abs(within - wanted) <= wanted / 20 else (f"{within} began instead of {wanted}",)
        figures = f"{within} began in {task.count} s, at most {most} in one"
        return task.row(
            done=task.count, figures=figures, broken=(*broken, *nothing_left(ground)), missed=missed
        )


def _start(ground: Ground, **environment: str) -> None:
    for _ in range(_SUPERVISORS):
        ground.start(ground.server("-w", str(_WORKERS), **environment), ready=_WORKERS)


def _stop(ground: Ground) -> tuple[str, ...]:
    codes = [(server.stop(), server.log()[-500:]) for server in ground.servers]
    return tuple(f"a server exited with {code}: {log}" for code, log in codes if code != 0)


def _fight(task: Task, ground: Ground) -> Kills:
    """Until all is done, the time is up, or nothing moves any more."""
    kills, left, moved_at = Kills(), task.count, time.monotonic()
    while (now_left := ground.audit.unfinished()) and not task.time_is_up:
        if now_left < left:
            left, moved_at = now_left, time.monotonic()
        if time.monotonic() - moved_at > _STUCK_AFTER_S:
            break
        living = [info for info in ground.storage.list_workers() if host.is_alive(info.process)]
        if living:
            victim = ground.rng.choice(sorted(living, key=lambda info: info.id))
            kills.workers.add(victim.id)  # noted first
            kills.count += 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim.process.pid, signal.SIGKILL)
        pause(_KILL_EVERY_S)
    return kills


def _most_claimed(transitions: list[Transition]) -> int:
    """How many were Processing at a time, in the order of the changes."""
    changes = (
        (each.new is StateName.PROCESSING) - (each.old is StateName.PROCESSING) for each in transitions
    )
    return max(itertools.accumulate(changes), default=0)


def _most_at_a_time(journal: list[Line]) -> int:
    """How many ran at a time of the attempts that came to their end."""
    ended = {(line.job_id, line.claim_seq): line.at_ns for line in journal if line.what == "end"}
    spans = [
        (line.at_ns, ended[line.job_id, line.claim_seq])
        for line in journal
        if line.what == "start" and (line.job_id, line.claim_seq) in ended
    ]
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    return max(itertools.accumulate(change for _, change in changes), default=0)
