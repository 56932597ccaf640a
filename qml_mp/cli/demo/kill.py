"""Client: how `qml-mp demo` kills a worker that provably runs a job, and what becomes of both."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from qml_mp.cli.demo.progress import Progress
from qml_mp.core.job import ClaimKey
from qml_mp.core.server_info import WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import QmlError
from qml_mp.host import is_alive
from qml_mp.storage.store import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kill:
    worker: WorkerInfo
    claim: ClaimKey
    """What the worker died with."""


class WorkerKill:
    """One worker killed, its replacement, and its job's second run, each told when it is seen."""

    def __init__(self, storage: Storage, path_of: Mapping[str, str], progress: Progress) -> None:
        self._storage = storage
        self._path_of = path_of
        self._progress = progress
        self._kill: _Kill | None = None
        self._replacement_seen = False
        self._rerun_seen = False

    def advance(self) -> None:
        """Do or look for the next step; called over and over."""
        if self._kill is None:
            self._kill = _kill_a_busy_worker(self._storage)
            if self._kill is not None:
                worker = self._kill.worker
                self._progress.say(
                    f"killed worker {worker.number} (pid {worker.process.pid}) with SIGKILL while it ran "
                    f"{self._path_of[self._kill.claim.job_id]}"
                )
            return
        if not self._replacement_seen:
            self._look_for_replacement(self._kill)
        if not self._rerun_seen:
            self._look_for_rerun(self._kill)

    def end(self) -> None:
        """After the last job: raise `QmlError` unless a worker was killed and its job ran again."""
        self.advance()
        if self._kill is None:
            raise QmlError(
                "No worker was caught running a job, so none was killed; try again with more files."
            )
        if not self._rerun_seen:
            path = self._path_of[self._kill.claim.job_id]
            raise QmlError(f"The job of {path}, whose worker was killed, did not run again.")
        if not self._replacement_seen:
            self._progress.say("the other workers were done before the replacement was up")

    def _look_for_replacement(self, kill: _Kill) -> None:
        for worker in self._storage.list_workers():
            same_place = (worker.server_id, worker.number) == (kill.worker.server_id, kill.worker.number)
            if same_place and worker.id != kill.worker.id:
                self._replacement_seen = True
                self._progress.say(f"worker {worker.number} is back as pid {worker.process.pid}")

    def _look_for_rerun(self, kill: _Kill) -> None:
        job = self._storage.get(kill.claim.job_id)
        if job is not None and job.state_name is StateName.SUCCEEDED and job.claim_seq > kill.claim.claim_seq:
            self._rerun_seen = True
            self._progress.say(
                f"{self._path_of[job.id]} ran again and succeeded, as hand-out {job.claim_seq}"
            )


def _kill_a_busy_worker(storage: Storage) -> _Kill | None:
    """SIGKILL a registered worker that holds a claim; None when none does just now.

    The worker is stopped first and the claim looked up again: what a stopped worker holds it cannot
    finish, so the kill is sure to hit a job and not the moment between two.
    """
    workers = {worker.id: worker for worker in storage.list_workers()}
    for claim in storage.claims():
        worker = workers.get(claim.worker_id)
        if worker is None or is_alive(worker.process) is not True:
            continue
        os.kill(worker.process.pid, signal.SIGSTOP)
        if claim.key in {held.key for held in storage.claims_of_worker(worker.id)}:
            os.kill(worker.process.pid, signal.SIGKILL)
            return _Kill(worker=worker, claim=claim.key)
        os.kill(worker.process.pid, signal.SIGCONT)
    return None
