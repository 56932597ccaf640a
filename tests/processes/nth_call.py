"""Tests: small scenarios on a real supervisor with one worker, in which somebody dies at a given place.

The supervisor is the copy of a process that is ready for it, so that a scenario takes a fraction of a second
and every place can have its turn. The judge is the journal, and the log that the database's triggers keep.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.audit import Audit
from tests.faults import ended_and_taken_away, faults_of_deaths, faults_of_runs, faults_of_transitions
from tests.processes.harness import is_gone, wait_until
from tests.processes.journal import read_journal
from tests.processes.supervisors import Role, Supervisors

FEW = ("flaky", "plain")
"""A job that needs two attempts and one that needs one: each is claimed alone, or nearly so."""
MANY = (*["plain"] * 9, "flaky", *["plain"] * 6)
"""So many that a worker holds several claims: 1 at first, then 2, 4 and 8, among which one fails."""
BATCH_PLACES = {
    "claims.committed": 0,
    "tickets.written": 0,
    "claim.committed": 0,
    "job.returned": 1,
    "outcome.recorded": 0,
    "finish.before": 0,
    "finish.committed": 0,
}
"""Where a worker with several claims may be killed; how many jobs have ended there unknown to all others."""
BATCH_NUMBERS = (1, 2, 3, 5, 9, 14)
"""At so many times of coming by: in the first claim, in each of the next ones, and near the end."""
CLAIMING_POINTS = (
    ("storage.call", "kill"),
    ("storage.call", "raise"),
    ("storage.committed", "raise"),
    ("exchange.received", "kill"),
)
"""What may hit a worker that claims while its jobs run."""
_FAILURES = {"flaky": 1, "plain": 0}
_LONGEST_S = 60.0
_MOST_NUMBERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a scenario runs: a storage with its schema and audit, a folder, and a source of supervisors."""

    storage: Storage
    audit: Audit
    folder: Path
    supervisors: Supervisors
    claims_while_jobs_run: bool = False
    """Also with jobs of no length."""

    @property
    def mark(self) -> Path:
        """There once the failpoint has struck."""
        return self.folder / "mark"

    @property
    def journal(self) -> Path:
        """What the jobs write."""
        return self.folder / "journal"

    @property
    def output(self) -> Path:
        """What the supervisors and workers said."""
        return self.folder / "output"


def play_each(stage: Stage, point: str, methods: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """`play` with the point armed for one time of coming by after the other: each number, and what does
    not hold. The last one is that at which nothing struck any more; `AssertionError` when it never comes."""
    for number in range(1, _MOST_NUMBERS):
        yield number, play(stage, f"{point}:{number}", methods)
        if not stage.mark.exists():
            return
    raise AssertionError(f"with {point} the scenario never came to its end unharmed")


def play(stage: Stage, failpoint: str, methods: Sequence[str] = FEW) -> list[str]:
    """Run such jobs while `failpoint` (once) is armed; what of the invariants does not hold then."""
    for path in (stage.mark, stage.journal):
        path.unlink(missing_ok=True)
    stage.audit.clear()
    ids = stage.storage.enqueue_many(Job.new(method) for method in methods)
    role = Role(
        url=stage.storage.url,
        armed=f"{failpoint}@{stage.mark};worker/outcome.recorded=note",
        journal=str(stage.journal),
        output=str(stage.output),
        claims_while_jobs_run=stage.claims_while_jobs_run,
    )
    status = _run_until(stage, role, least_runs(methods))
    while status == -signal.SIGKILL:
        status = _run_until(stage, role, least_runs(methods))
    return [*_faults(stage, ids), *([] if status == 0 else [f"the supervisor ended with {status}"])]


def least_runs(methods: Sequence[str]) -> int:
    """How often such jobs run when nobody dies."""
    return sum(1 + _FAILURES[method] for method in methods)


def runs(stage: Stage) -> int:
    """How many runs have begun in what was played last."""
    return sum(line.what == "start" for line in read_journal(stage.journal))


def _run_until(stage: Stage, role: Role, fewest: int) -> int:
    """One supervisor, until all jobs have ended or it is killed; its exit code."""
    supervisor = stage.supervisors.start(role)

    def is_over() -> bool:
        return supervisor.has_ended() or (
            # The cheap look first: a job ends after its run, and nothing has to ask the database until then.
            _ended_runs(stage) >= fewest
            and _all_done(stage.storage)
            # Before it is registered, a SIGTERM would find no handler; and to prove the one before it dead
            # may take longer than a start waits for.
            and _registered(stage.storage) == {supervisor.pid}
        )

    try:
        wait_until(is_over, within_s=_LONGEST_S, what=f"the end with {role.armed}; {_tail(stage)}")
        if not supervisor.has_ended():
            os.kill(supervisor.pid, signal.SIGTERM)
            ended = supervisor.has_ended(_LONGEST_S)
            assert ended, f"it did not stop with {role.armed}; {_tail(stage)}"
    finally:
        if not supervisor.has_ended():
            os.kill(supervisor.pid, signal.SIGKILL)
            supervisor.has_ended(_LONGEST_S)
    assert supervisor.exit_code is not None
    return supervisor.exit_code


def _ended_runs(stage: Stage) -> int:
    return sum(line.what == "end" for line in read_journal(stage.journal))


def _all_done(storage: Storage) -> bool:
    counts = storage.job_counts()
    return all(counts[state] == 0 for state in StateName if not state.is_final)


def _registered(storage: Storage) -> set[int]:
    return {server.process.pid for server in storage.list_servers()}


def _faults(stage: Stage, ids: list[str]) -> Iterator[str]:
    """Everything that does not hold, in words."""
    jobs = [stage.storage.get(job_id) for job_id in ids]
    for job in jobs:
        if job is None or (job.state_name, job.failures) != (StateName.SUCCEEDED, _FAILURES[job.method]):
            yield f"not as it should be: {job}"
    crashes = sum(job.crashes for job in jobs if job)
    if crashes > 1:
        yield f"{crashes} crashes for one kill"
    log, attempts = [one for one in stage.audit.transitions() if one.job_id in ids], stage.audit.attempts()
    lines = read_journal(stage.journal)
    yield from faults_of_transitions(log, attempts)
    yield from faults_of_runs(lines, log)
    yield from faults_of_deaths(log)
    yield from (f"ended and taken away: {one}" for one in ended_and_taken_away(lines, log, attempts))
    yield from (f"process {pid} is left" for pid in {line.pid for line in lines} if not is_gone(pid))
    left = [*stage.storage.claims(), *stage.storage.list_servers(), *stage.storage.list_workers()]
    if left:
        yield f"left behind: {left}; {_tail(stage)}"


def _tail(stage: Stage) -> str:
    return stage.output.read_text(errors="replace")[-3000:] if stage.output.exists() else ""
