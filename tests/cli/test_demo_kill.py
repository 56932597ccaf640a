"""Tests: the worker that the demo kills, and what it takes for the loss of its job."""

from __future__ import annotations

import signal
import subprocess
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from qml_mp import host
from qml_mp.cli.demo.kill import WorkerKill
from qml_mp.cli.demo.progress import Progress
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Crash, ErrorInfo
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.claimer import FETCH, register, worker
from tests.storage.helpers import KEEP

DIED = Crash(error=ErrorInfo(type="WorkerDied", message="killed"), rerun_after=timedelta(0))


class SettledMeanwhile:
    """The storage, to which the supervisor writes the crash right after somebody has looked for it."""

    def __init__(self, storage: Storage, claim: Claim) -> None:
        self._storage = storage
        self._claim: Claim | None = claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def attempts(self, job_id: str) -> Any:
        found = self._storage.attempts(job_id)
        if self._claim is not None:
            claim, self._claim = self._claim, None
            self._storage.finish(claim, DIED, retention=KEEP)
        return found


def test_a_crash_that_is_written_between_two_looks_is_no_kill_between_two_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with closing(open_storage(url)) as storage, subprocess.Popen(["sleep", "1000"]) as process:
        register(storage)
        assert storage.register_worker(replace(worker(epoch=1), process=host.identity(process.pid)))
        job_id = storage.enqueue(Job.new("digest"))
        [claim] = storage.exchange((), fetch=replace(FETCH, epoch=1), limit=1, retention=KEEP).claims
        watched = cast(Storage, SettledMeanwhile(storage, claim))
        kill = WorkerKill(watched, {job_id: "a.py"}, Progress())

        kill.advance()
        assert process.wait() == -signal.SIGKILL
        kill.advance()
        kill.advance()

    assert f"killed worker 1 (pid {process.pid}) with SIGKILL while it ran a.py" in capsys.readouterr().out
