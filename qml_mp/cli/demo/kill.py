"""Client: how `qml-mp demo` kills a worker that runs a job, and what becomes of both."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from qml_mp.cli.demo.progress import Progress
from qml_mp.core.job import ClaimKey
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.server_info import WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import QmlError
from qml_mp.host import is_alive
from qml_mp.storage.store import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kill:
    worker: WorkerInfo
    claims: tuple[ClaimKey, ...]
    """What the worker died with: it may hold several, and runs one of them."""


class WorkerKill:
    """One worker killed, its replacement, and its job's second run, each told when it is seen.

    A kill that struck between two jobs is no loss of a job, and another one follows.
    """

    def __init__(self, storage: Storage, path_of: Mapping[str, str], progress: Progress) -> None:
        self._storage = storage
        self._path_of = path_of
        self._progress = progress
        self._kill: _Kill | None = None
        self._struck: ClaimKey | None = None
        """Of the job that ran."""
        self._replacement_seen = False
        self._rerun_seen = False

    def advance(self) -> None:
        """Do or look for the next step; called over and over."""
        if self._kill is None:
            self._kill = _kill_a_busy_worker(self._storage)
            return
        if self._struck is None:
            self._look_for_crash(self._kill)
            return
        if not self._replacement_seen:
            self._look_for_replacement(self._kill)
        if not self._rerun_seen:
            self._look_for_rerun(self._struck)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to look for."""
        return self._replacement_seen and self._rerun_seen

    def end(self) -> None:
        """After the last job: raise `QmlError` unless a worker was killed and its job ran again."""
        for _ in range(2):  # the crash, then what came of it
            self.advance()
        if self._struck is None:
            raise QmlError(
                "No worker was caught running a job, so none was killed; try again with more files."
            )
        if not self._rerun_seen:
            path = self._path_of[self._struck.job_id]
            raise QmlError(f"The job of {path}, whose worker was killed, did not run again.")
        if not self._replacement_seen:
            self._progress.say("the other workers were done before the replacement was up")

    def _look_for_crash(self, kill: _Kill) -> None:
        # Before the crash, or it might be written between the two looks.
        is_settled = not self._storage.claims_of_worker(kill.worker.id)
        crashes = (key for key in kill.claims if _has_crashed(self._storage, key))
        self._struck = next(crashes, None)
        if self._struck is not None:
            self._progress.say(
                f"killed worker {kill.worker.number} (pid {kill.worker.process.pid}) with SIGKILL while it "
                f"ran {self._path_of[self._struck.job_id]}"
            )
        elif is_settled:
            self._kill = None

    def _look_for_replacement(self, kill: _Kill) -> None:
        for worker in self._storage.list_workers():
            same_place = (worker.server_id, worker.number) == (kill.worker.server_id, kill.worker.number)
            if same_place and worker.id != kill.worker.id:
                self._replacement_seen = True
                self._progress.say(f"worker {worker.number} is back as pid {worker.process.pid}")

    def _look_for_rerun(self, struck: ClaimKey) -> None:
        job = self._storage.get(struck.job_id)
        if job is not None and job.state_name is StateName.SUCCEEDED and job.claim_seq > struck.claim_seq:
            self._rerun_seen = True
            self._progress.say(
                f"{self._path_of[job.id]} ran again and succeeded, as hand-out {job.claim_seq}"
            )


def _kill_a_busy_worker(storage: Storage) -> _Kill | None:
    """SIGKILL a registered worker that holds a claim; None when none does just now.

    The worker is stopped first and its claims looked up again: what a stopped worker holds it cannot finish,
    so the kill is all but sure to hit a job and not the moment between two.
    """
    workers = {worker.id: worker for worker in storage.list_workers()}
    for claim in storage.claims():
        worker = workers.get(claim.worker_id)
        if worker is None or is_alive(worker.process) is not True:
            continue
        os.kill(worker.process.pid, signal.SIGSTOP)
        claims = tuple(held.key for held in storage.claims_of_worker(worker.id))
        if claims:
            os.kill(worker.process.pid, signal.SIGKILL)
            return _Kill(worker=worker, claims=claims)
        os.kill(worker.process.pid, signal.SIGCONT)
    return None


def _has_crashed(storage: Storage, key: ClaimKey) -> bool:
    return any(
        attempt.kind is AttemptKind.CRASH and attempt.claim_seq == key.claim_seq
        for attempt in storage.attempts(key.job_id)
    )
