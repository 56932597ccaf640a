"""Tests: a limit on what runs holds over three servers whose workers are killed (C6)."""

from __future__ import annotations

import itertools
import time

from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind
from qml_mp.core.state import StateName
from tests.audit import Transition
from tests.nightly.ground import Ground, environment_of, fresh_ground, kill_a_worker, pause
from tests.nightly.judge import Kills
from tests.nightly.report import Row
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.processes.journal import Line
from tests.storage.helpers import set_limit

_SUPERVISORS, _WORKERS = 3, 4
_PLACES = 3
_BUSY_S = 0.01
_KILL_EVERY_S = 0.2
_ENDS_BETWEEN_KILLS, _OFTEN_ENOUGH_S = 5, 2.0
_STUCK_AFTER_S = 120.0


def run_places(task: Task) -> Row:
    """Jobs of a queue of which three may run at a time, while a random worker is killed every 200 ms."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        set_limit(ground.storage, LimitKind.QUEUE, "default", max_running=_PLACES)
        _start(ground, **environment_of({"max_crashes": 1000}))
        ids = ground.storage.enqueue_many(Job.new("unit", {"busy_s": _BUSY_S}) for _ in range(task.count))
        kills = _fight(task, ground)
        broken = _stop(ground)
        if not kills.count:
            broken += ("no worker was killed: there were too few jobs",)
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


def _start(ground: Ground, **environment: str) -> None:
    for _ in range(_SUPERVISORS):
        ground.start(ground.server("-w", str(_WORKERS), **environment), ready=_WORKERS)


def _stop(ground: Ground) -> tuple[str, ...]:
    codes = [(server.stop(), server.log()[-500:]) for server in ground.servers]
    return tuple(f"a server exited with {code}: {log}" for code, log in codes if code != 0)


def _fight(task: Task, ground: Ground) -> Kills:
    """Kill workers until all jobs have ended, the time is up, or nothing moves any more.

    Some jobs end between two kills, so that a slow machine has a slower fight.
    """
    kills, left = Kills(), task.count
    moved_at = killed_at = time.monotonic()
    left_at_kill = left
    while (now_left := ground.audit.unfinished()) and not task.time_is_up:
        now = time.monotonic()
        if now_left < left:
            left, moved_at = now_left, now
        if now - moved_at > _STUCK_AFTER_S:
            break
        if left_at_kill - left >= _ENDS_BETWEEN_KILLS or now - killed_at > _OFTEN_ENOUGH_S:
            left_at_kill, killed_at = left, now
            kill_a_worker(ground, kills)
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
