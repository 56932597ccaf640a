"""Tests: workers that die in their very first jobs, before anybody has looked at them (FAULTS 94)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.nightly.ground import Ground, fresh_ground
from tests.nightly.judge import Kills
from tests.nightly.report import Row
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.processes.harness import wait_until

_WORKERS = 2
_ORDINARY = 20
_EXIT_CODES = (3, 82, 0)
"""A job's own exits that were once read as a worker's word: cannot boot, broken, and fine."""
_LONGEST_S = 60.0


def run_first_jobs(task: Task) -> Row:
    """So many starts of a server, each with four jobs that kill their workers at the head of the queue and
    twenty that do not. The count is of the starts."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        ids: list[str] = []
        killers: list[str] = []
        broken: list[str] = []
        for turn in task.turns(task.count):
            new = ground.storage.enqueue_many(_killers())
            killers += new
            ids += ground.storage.enqueue_many(Job.new("unit", {}) for _ in range(_ORDINARY))
            problem = _start_and_stop(ground)
            broken += [f"start {turn + 1}: {problem}"] if problem else []
            broken += _offences_of_killers(ground.storage, new)
        # Nobody was killed but by those four: whatever else was taken from a worker is an offence.
        findings = judge_ground(ground, expected=ids, kills=Kills())
        findings = replace(
            findings,
            unexplained=_without(killers, findings.unexplained),
            charged=_without(killers, findings.charged),
        )
        return task.row(
            done=len(ids) // _ORDINARY,
            findings=findings,
            kills=3 * len(killers),
            figures=f"{len(ids)} ordinary jobs, {len(killers)} killers",
            broken=(*broken, *nothing_left(ground)),
        )


def _killers() -> list[Job]:
    return [*(Job.new("leave_with", {"code": code}) for code in _EXIT_CODES), Job.new("poison")]


def _start_and_stop(ground: Ground) -> str | None:
    """Run a server until every job has ended; what was wrong with the server itself."""
    server = ground.server("-w", str(_WORKERS))
    server.start(ready=None)
    process = server.process
    assert process is not None
    wait_until(
        lambda: process.poll() is not None or not ground.audit.unfinished(),
        within_s=_LONGEST_S,
        what=f"the end of all jobs; {server.log()[-3000:]}",
    )
    if process.poll() is not None:
        return f"the server left by itself with {process.poll()}: {server.log()[-1000:]}"
    code = server.stop()
    return None if code == 0 else f"the server did not stop with 0, but {code}: {server.log()[-1000:]}"


def _offences_of_killers(storage: Storage, killers: list[str]) -> list[str]:
    found = []
    for killer in killers:
        job = storage.get(killer)
        if job is None or job.state_name is not StateName.FAILED or job.last_error is None:
            found.append(f"killer {killer} ended as {job and job.state}")
        elif job.last_error.type != "WorkerCrashed":
            found.append(f"killer {killer} has the error {job.last_error.type}")
    return found


def _without(killers: list[str], texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if not any(killer in text for killer in killers))
