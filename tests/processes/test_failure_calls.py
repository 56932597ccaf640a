"""Tests: the program is called for each job that failed for good, whoever is killed meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, is_stopped, wait_for_state, wait_until

MakeServer = Callable[..., Server]
APP = "tests.processes.apps_failures:app"


def told(folder: Path) -> list[list[str]]:
    """Of each call: the job, its state, the error's type, the caller's pid."""
    file = folder / "told"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@few("failpoint, calls", [("callback.called=kill", 2)], nightly=[("callback.taken=kill", 1)])
def test_a_job_whose_process_died_is_told_by_another_although_that_is_killed_too(
    server: MakeServer, storage: Storage, tmp_path: Path, failpoint: str, calls: int
) -> None:
    one = server("-w", "2", app=APP)
    one.program = ("-m", "tests.failpoints", f"{failpoint}@{tmp_path / 'mark'}")
    one.start(ready=2)

    job_id = enqueue(storage, "dies")

    assert wait_for_state(storage, job_id, StateName.FAILED).crashes == 1
    wait_until(lambda: len(told(tmp_path)) >= calls, what=one.log)
    lines = told(tmp_path)
    assert [line[:3] for line in lines] == calls * [[job_id, "failed", "WorkerCrashed"]]
    assert len({line[3] for line in lines}) == calls
    assert (tmp_path / "mark").exists()
    assert one.stop() == 0


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_a_killed_server_had_to_tell_the_next_one_tells(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app=APP)
    one.program = ("-m", "tests.failpoints", f"callback.taken=stop@{tmp_path / 'mark'}")
    one.start()
    worker = one.worker_pids()[1]
    job_id = enqueue(storage, "fails")
    wait_until((tmp_path / "mark").exists)
    wait_until(lambda: is_stopped(worker))
    one.clean_up()
    before = told(tmp_path)

    two = server("-w", "1", "--burst", app=APP).start(ready=None)

    assert two.wait() == 0
    assert before == []
    assert [line[:3] for line in told(tmp_path)] == [[job_id, "failed", "ValueError"]]


FAILS = """
from qml_mp import QmlApp, RetryPolicy
app = QmlApp()
@app.job(retry=RetryPolicy.none())
def fails():
    raise ValueError("no")
"""
TELLS = """
@app.on_failure
def tell(job, error):
    with open({told!r}, "a") as file:
        file.write(job.id + "\\n")
"""


HANGS = """
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_server_that_had_to_kill_a_call_and_no_job_has_stopped_in_order(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    tells = TELLS.format(told=str(tmp_path / "told")) + HANGS
    (tmp_path / "hanging_app.py").write_text("import time\n" + FAILS + tells)
    one = server(
        "-w", "1", "--shutdown-timeout", "1", app="hanging_app:app", PYTHONPATH=str(tmp_path)
    ).start()
    job_id = enqueue(storage, "fails")
    wait_until(lambda: told(tmp_path) == [[job_id]], what=one.log)

    code = one.stop()

    assert "was killed by SIGKILL" in one.log()
    assert code == 0
