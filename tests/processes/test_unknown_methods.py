"""Tests: a job whose method a server does not know waits for one that does, and is shown meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import ROOT, Server, enqueue, result_of, state_of, wait_for_state, wait_until
from tests.storage.helpers import patient_url

MakeServer = Callable[..., Server]
HEAD = "from qml_mp import QmlApp\napp = QmlApp()\n"
OLD = "@app.job()\ndef old():\n    return 'old'\n"
NEW = "@app.job()\ndef newone():\n    return 'new'\n"


def status_of(url: str) -> str:
    """What `qml-mp status` prints."""
    command = [sys.executable, "-m", "qml_mp", "--url", patient_url(url), "status"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.fault(90)
def test_a_job_of_newer_code_waits_during_a_deploy_and_runs_once_the_server_knows_it(
    server: MakeServer, storage: Storage, url: str, tmp_path: Path
) -> None:
    module = tmp_path / "growing_app.py"
    module.write_text(HEAD + OLD)
    one = server("-w", "2", app="growing_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1")
    one.start(ready=2)
    waiting = enqueue(storage, "newone")

    wait_until(lambda: "Jobs wait for method newone" in one.log(), what=one.log)
    assert [result_of(storage, "old") for _ in range(5)] == ["old"] * 5
    assert state_of(storage, waiting) is StateName.ENQUEUED
    assert "1 job waits for methods that no live server has: newone" in status_of(url)
    module.write_text(HEAD + OLD + NEW)
    one.signal(signal.SIGHUP)
    job = wait_for_state(storage, waiting, StateName.SUCCEEDED)
    assert (job.result, job.claim_seq, job.failures) == ("new", 1, 0)
    assert "waits for method" not in status_of(url)
    assert one.stop() == 0


@pytest.mark.fault(90)
def test_two_apps_on_one_database_each_run_their_own_jobs(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "first_app.py").write_text(HEAD + OLD)
    (tmp_path / "second_app.py").write_text(HEAD + NEW)
    servers = [
        server("-w", "1", app=f"{name}_app:app", PYTHONPATH=str(tmp_path)).start()
        for name in ("first", "second")
    ]

    ids = [enqueue(storage, method) for _ in range(20) for method in ("old", "newone")]

    for job_id in ids:
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
        assert (job.crashes, job.failures) == (0, 0)
    assert "Jobs wait for method" not in servers[0].log()
    assert [one.stop() for one in servers] == [0, 0]


@pytest.mark.fault(90)
def test_a_burst_leaves_jobs_that_it_does_not_know_and_says_so(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "first_app.py").write_text(HEAD + OLD)
    unknown = [enqueue(storage, "newone") for _ in range(2)]
    known = enqueue(storage, "old")

    one = server("-w", "1", "--burst", app="first_app:app", PYTHONPATH=str(tmp_path)).start(ready=None)

    assert one.wait() == 0
    assert state_of(storage, known) is StateName.SUCCEEDED
    assert {state_of(storage, job_id) for job_id in unknown} == {StateName.ENQUEUED}
    assert "Left: 2 jobs of method newone, which this server does not know" in one.log()
