"""Tests: a job that kills every worker that runs it, among many that must not notice (B7)."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace

from qml_mp.core.job import Job
from qml_mp.core.outcome import Attempt, AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import wait_until
from tests.processes.journal import Line
from tests.soak.ground import fresh_ground
from tests.soak.judge import Kills
from tests.soak.report import Row
from tests.soak.scenario import Task, judge_ground, nothing_left

_WORKERS = 4
_BUSY_S = 0.01
_CRASHES = 3  # the default budget
_LONGEST_S = 120.0


def run_poison(task: Task) -> Row:
    """One poison job and so many others, on a server with the default crash budget."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        others = [Job.new("unit", {"busy_s": _BUSY_S}) for _ in range(task.count)]
        half = len(others) // 2
        ids = ground.storage.enqueue_many(others[:half])
        poison_id = ground.storage.enqueue(Job.new("poison"))
        ids += ground.storage.enqueue_many(others[half:])
        server = ground.start(ground.server("-w", str(_WORKERS)), ready=1)
        wait_until(
            lambda: not ground.audit.unfinished(),
            within_s=_LONGEST_S,
            what=f"the end; {server.log()[-2000:]}",
        )
        broken = [] if server.stop() == 0 else [f"the server did not stop with 0: {server.log()[-500:]}"]
        broken += _offences_of_the_poison(ground.storage, poison_id)
        # Nobody was killed but by the poison: whatever else was taken from a worker is an offence.
        findings = judge_ground(ground, expected=ids, kills=Kills())
        findings = replace(
            findings,
            unexplained=tuple(text for text in findings.unexplained if poison_id not in text),
            charged=tuple(text for text in findings.charged if poison_id not in text),
        )
        return task.row(
            done=len(ids),
            findings=findings,
            kills=_CRASHES,
            figures=f"longest pause between two other jobs {_longest_pause_ms(ground.journal(), ids):.0f} ms",
            broken=(*broken, *nothing_left(ground)),
        )


def _offences_of_the_poison(storage: Storage, poison_id: str) -> list[str]:
    found = []
    job = storage.get(poison_id)
    if job is None or job.state_name is not StateName.FAILED or job.last_error is None:
        return [f"the poison job ended as {job and job.state}"]
    if job.last_error.type != "WorkerCrashed":
        found.append(f"the poison job's error is {job.last_error.type}")
    if (job.failures, job.crashes) != (0, _CRASHES):
        found.append(f"the poison job was charged {job.failures} failures and {job.crashes} crashes")
    attempts = storage.attempts(poison_id)
    if [attempt.kind for attempt in attempts] != [AttemptKind.CRASH] * _CRASHES:
        found.append(f"the poison job's attempts are {[str(attempt.kind) for attempt in attempts]}")
    found += [f"no forensic record: {attempt}" for attempt in attempts if not _is_forensic(attempt)]
    return found


def _is_forensic(attempt: Attempt) -> bool:
    """Whether it tells by what the process ended, and what it had used."""
    process = attempt.process
    return (
        process is not None
        and process.signal == signal.SIGKILL
        and bool(process.peak_rss_bytes)
        and process.cpu_s is not None
        and attempt.ended_at >= attempt.started_at
    )


def _longest_pause_ms(journal: list[Line], ids: list[str]) -> float:
    """Between two ends of other jobs: whether the flow stood still."""
    known = set(ids)
    ends = sorted(line.at_ns for line in journal if line.what == "end" and line.job_id in known)
    return max((after - before) / 1e6 for before, after in itertools.pairwise(ends))
