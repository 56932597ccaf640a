"""Tests: a time limit on jobs that heed it and on jobs that do all they can not to (B2)."""

from __future__ import annotations

import time
from datetime import timedelta

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from tests.processes.harness import Server, wait_until
from tests.processes.journal import Line
from tests.soak.ground import Ground, descendants, environment_of, fresh_ground
from tests.soak.report import Row, median_and_p99
from tests.soak.scenario import Task, nothing_left

_APP = "tests.processes.jobs_app:app"
_LIMIT_S, _CANCEL_GRACE_S, _TERM_GRACE_S, _SLACK_S = 5.0, 2.0, 5.0, 0.5
_LIMIT_OF_A_PARENT_S = 8.0
"""Within it a fresh Python has to begin, and only then its parent does."""
_LONGEST_S = 60.0
_UNWINDING = {"spin": {}, "nap": {"seconds": 60.0}}
"""A Python loop, and `time.sleep`."""
_DEFIANT = ("spin_in_c", "stubborn", "deaf", "parent_of_the_stubborn")
"""The interpreter lock held in C, SIGTERM ignored, all signals blocked, a subprocess that ignores SIGTERM."""


def run_limits(task: Task) -> Row:
    """Each of these jobs once a round, side by side, under the default graces. The pace shortens the first
    alone: within the other one a job has to unwind, before it is killed."""
    graces = {"cancel_grace": _CANCEL_GRACE_S * task.pace, "term_grace": _TERM_GRACE_S}
    longest_ms = (sum(graces.values()) + _SLACK_S) * 1000
    methods = {**_UNWINDING, **{method: {} for method in _DEFIANT}}
    broken: list[str] = []
    over_ms: list[float] = []
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        server = ground.server("-w", str(len(methods)), app=_APP, **environment_of(graces))
        ground.start(server, ready=len(methods))
        for _ in task.turns(task.count):
            took = {
                ground.storage.enqueue(Job.new(method, dict(arguments), timeout=_limit_of(method))): method
                for method, arguments in methods.items()
            }
            over_ms += _judge_round(ground, server, took, broken)
        if (code := server.stop()) != 0:
            broken.append(f"the server exited with {code}: {server.log()[-500:]}")
        missed = [
            f"an attempt was over {late:.0f} ms after its limit" for late in over_ms if late > longest_ms
        ]
        return task.row(
            done=len(over_ms) // len(methods),
            figures=f"over its limit {median_and_p99('', over_ms).strip()}, allowed {longest_ms:.0f} ms",
            broken=(*broken, *nothing_left(ground)),
            missed=tuple(missed),
        )


def _judge_round(ground: Ground, server: Server, methods: dict[str, str], broken: list[str]) -> list[float]:
    """How long after its limit each attempt was seen to be over, which began at its first line in the
    journal."""
    ended_ns: dict[str, int] = {}

    def all_ended() -> bool:
        for job_id in methods.keys() - ended_ns.keys():
            job = ground.storage.get(job_id)
            if job is not None and job.state_name is StateName.FAILED:
                ended_ns[job_id] = time.monotonic_ns()
        return len(ended_ns) == len(methods)

    wait_until(all_ended, within_s=_LONGEST_S, what=f"the end of all attempts; {server.log()[-2000:]}")
    lines: dict[str, list[Line]] = {}
    for line in ground.journal():
        lines.setdefault(line.job_id, []).append(line)
    for job_id, method in methods.items():
        broken += [f"{method}: {text}" for text in _offences(ground, job_id, method, lines[job_id])]
    wait_until(lambda: not _strangers(ground, server), what="the end of all processes")
    starts = {
        job_id: next(line.at_ns for line in lines[job_id] if line.what == "start") for job_id in methods
    }
    return [
        (ended_ns[job_id] - starts[job_id]) / 1e6 - _limit_of(method) / timedelta(milliseconds=1)
        for job_id, method in methods.items()
    ]


def _limit_of(method: str) -> timedelta:
    return timedelta(seconds=_LIMIT_OF_A_PARENT_S if method == "parent_of_the_stubborn" else _LIMIT_S)


def _offences(ground: Ground, job_id: str, method: str, lines: list[Line]) -> list[str]:
    found = []
    job = ground.storage.get(job_id)
    kinds = [attempt.kind for attempt in ground.storage.attempts(job_id)]
    if kinds != [AttemptKind.TIMEOUT]:
        found.append(f"recorded as {kinds}")
    if job is None or (job.failures, job.crashes) != (1, 0):
        found.append("charged otherwise than with one failure")
    unwound = any(line.what == "end" for line in lines)
    if unwound != (method in _UNWINDING):
        found.append(f"unwound: {unwound}")
    return found


def _strangers(ground: Ground, server: Server) -> list[int]:
    """Processes of the ground that are not the server's own any more."""
    own = {server.pid, *descendants(server.pid)}
    return [pid for pid in ground.leftovers() if pid not in own]
