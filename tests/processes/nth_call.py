"""Tests: small scenarios on a real supervisor with one worker, in which somebody dies at a given place.

The supervisor is forked from the test, so that a scenario takes a fraction of a second and every
place can have its turn. The judge is the journal, and the log that the database's triggers keep.
"""

from __future__ import annotations

import logging
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from qml_mp.child.source import LoadedProgram
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.server import Supervisor
from qml_mp.supervisor.urgent import STORAGE_PATIENCE
from tests import failpoints
from tests.audit import Audit
from tests.faults import ended_and_taken_away, faults_of_deaths, faults_of_runs, faults_of_transitions
from tests.processes.apps_storage_faults import app
from tests.processes.harness import is_gone, wait_until
from tests.processes.journal import JOURNAL, read_journal

CONFIG = ServerConfig(
    worker_count=1,
    fetch_batch_size=100,
    polling_interval=timedelta(milliseconds=50),
    scheduler_poll_interval=timedelta(milliseconds=50),
    shutdown_timeout=timedelta(seconds=10),
)
FEW = ("flaky", "plain")
"""A job that needs two attempts and one that needs one: each is claimed alone, or nearly so."""
MANY = (*["plain"] * 9, "flaky", *["plain"] * 6)
"""So many that a worker holds several claims: 1 at first, then 2, 4 and 8, among which one fails."""
_FAILURES = {"flaky": 1, "plain": 0}
_LONGEST_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a scenario runs: a storage with its schema and audit, and a folder."""

    storage: Storage
    folder: Path

    @property
    def mark(self) -> Path:
        """There once the failpoint has struck."""
        return self.folder / "mark"

    @property
    def output(self) -> Path:
        """What the supervisors and workers said."""
        return self.folder / "output"


def play(stage: Stage, failpoint: str, methods: Sequence[str] = FEW) -> list[str]:
    """Run such jobs while `failpoint` (once) is armed; what of the invariants does not hold then."""
    for path in (stage.mark, stage.folder / "journal"):
        path.unlink(missing_ok=True)
    with closing(Audit(stage.storage.url)) as audit:  # closed before the fork
        audit.clear()
    ids = stage.storage.enqueue_many(Job.new(method) for method in methods)
    armed = f"{failpoint}@{stage.mark};worker/outcome.recorded=note"
    status = _run_until(stage, ids, armed)
    while status == -signal.SIGKILL:
        status = _run_until(stage, ids, armed)
    return [*_faults(stage, ids), *([] if status == 0 else [f"the supervisor ended with {status}"])]


def _run_until(stage: Stage, ids: list[str], armed: str) -> int:
    """One supervisor, until all jobs have ended or it is killed; its exit code."""
    pid = os.fork()
    if pid == 0:
        _be_supervisor(stage, armed)
    ended: list[int] = []

    def has_ended() -> bool:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(done)

    def is_over() -> bool:
        counts = stage.storage.job_counts()
        all_done = all(counts[state] == 0 for state in StateName if not state.is_final)
        # Before it is registered, a SIGTERM would find no handler.
        return has_ended() or (all_done and pid in _registered(stage.storage))

    try:
        wait_until(is_over, within_s=_LONGEST_S, what=f"the end with {armed}; {_tail(stage)}")
        if not ended:
            os.kill(pid, signal.SIGTERM)
            wait_until(has_ended, within_s=_LONGEST_S, what=f"the stop with {armed}; {_tail(stage)}")
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return ended[0]


def _registered(storage: Storage) -> set[int]:
    return {server.process.pid for server in storage.list_servers()}


def _be_supervisor(stage: Stage, armed: str) -> None:
    code = 70
    try:
        output = os.open(stage.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)s %(message)s", force=True)
        os.environ[JOURNAL] = str(stage.folder / "journal")
        failpoints.arm(armed)
        storage = open_storage(stage.storage.url, patience=STORAGE_PATIENCE)
        code = Supervisor(CONFIG, storage, LoadedProgram(program=app.program)).run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _faults(stage: Stage, ids: list[str]) -> Iterator[str]:
    """Everything that does not hold, in words."""
    jobs = [stage.storage.get(job_id) for job_id in ids]
    for job in jobs:
        if job is None or (job.state_name, job.failures) != (StateName.SUCCEEDED, _FAILURES[job.method]):
            yield f"not as it should be: {job}"
    crashes = sum(job.crashes for job in jobs if job)
    if crashes > 1:
        yield f"{crashes} crashes for one kill"
    with closing(Audit(stage.storage.url)) as audit:
        log, attempts = [one for one in audit.transitions() if one.job_id in ids], audit.attempts()
    lines = read_journal(stage.folder / "journal")
    yield from faults_of_transitions(log, attempts)
    yield from faults_of_runs(lines, log)
    yield from faults_of_deaths(log)
    yield from (f"ended and taken away: {one}" for one in ended_and_taken_away(lines, log, attempts))
    yield from (f"process {pid} is left" for pid in {line.pid for line in lines} if not is_gone(pid))
    if stage.storage.claims() or stage.storage.list_servers() or stage.storage.list_workers():
        yield "claims or rows of the registry are left"


def _tail(stage: Stage) -> str:
    return stage.output.read_text(errors="replace")[-3000:] if stage.output.exists() else ""
