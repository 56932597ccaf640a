"""Tests: the folder in which a server was started is removed, as deploys do with an earlier release."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    is_gone,
    is_stopped,
    result_of,
    wait_for_state,
    wait_until,
)

MakeServer = Callable[..., Server]
CODE = """
import os, time
from pathlib import Path
from qml_mp import QmlApp
app = QmlApp()
@app.job()
def version():
    return {}
@app.job()
def wait_at(gate):
    Path(gate).with_suffix(".begun").touch()
    while not Path(gate).exists():
        time.sleep(0.01)
    return os.getpid()
"""
IN_A_FOLDER_THAT_IS_GONE = ("sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh")


@pytest.fixture
def release(tmp_path: Path) -> Path:
    folder = tmp_path / "release"
    folder.mkdir()
    return folder


@few("flags", [[]], nightly=[["--reload"], ["--preload"]])
def test_a_server_whose_release_is_removed_works_on_with_the_workers_that_it_has(
    server: MakeServer, storage: Storage, release: Path, tmp_path: Path, flags: list[str]
) -> None:
    file = release / "living_app.py"
    file.write_text(CODE.format(1))
    os.utime(file, (0, 0))  # one that was written just before it is read may have been so just after, too
    one = server("-w", "1", *flags, app="living_app:app", PYTHONDONTWRITEBYTECODE="1")
    one.cwd = release
    one.start()
    workers = one.worker_pids()
    gate = tmp_path / "gate"
    job_id = enqueue(storage, "wait_at", gate=str(gate))
    wait_until(gate.with_suffix(".begun").exists, what=one.log)

    one.signal(signal.SIGSTOP)  # or it might look when the code is gone and the folder still there
    wait_until(lambda: is_stopped(one.pid), what="the stop")
    shutil.rmtree(release)
    one.signal(signal.SIGCONT)
    if "--reload" not in flags:
        one.signal(signal.SIGHUP)
    if "--preload" not in flags:
        wait_until(lambda: "cannot be imported from a directory that was removed" in one.log(), what=one.log)
    gate.touch()

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert job.claim_seq == 1
    if "--preload" in flags:  # whose program is in memory, and is replaced from there
        wait_until(lambda: all(map(is_gone, workers.values())), what=one.log)
        wait_until(lambda: len(one.worker_pids()) == 1, what=one.log)
    else:
        assert one.worker_pids() == workers
    assert [result_of(storage, "version") for _ in range(3)] == [1, 1, 1]
    assert one.stop() == 0


def test_code_that_lies_elsewhere_is_taken_over_although_the_folder_is_gone(
    server: MakeServer, storage: Storage, release: Path, tmp_path: Path
) -> None:
    (tmp_path / "living_app.py").write_text(CODE.format(1))
    one = server(
        "-w", "1", app="living_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"
    )  # fmt: skip
    one.cwd = release
    one.start()
    workers = one.worker_pids()
    release.rmdir()
    (tmp_path / "living_app.py").write_text(CODE.format(22))

    one.signal(signal.SIGHUP)

    wait_until(lambda: all(map(is_gone, workers.values())), what=one.log)
    assert [result_of(storage, "version") for _ in range(3)] == [22, 22, 22]
    assert one.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--version"], 0, "qml-mp"),
        (["-A", "tasks:app", "status"], 3, "cannot be imported from a directory that was removed"),
        (["--url", "sqlite:///jobs.db", "status"], 2, "the current directory, which was removed"),
    ],
)
def test_a_command_in_a_folder_that_is_gone_says_so(
    release: Path, arguments: list[str], code: int, says: str
) -> None:
    ended = subprocess.run(
        [*IN_A_FOLDER_THAT_IS_GONE, sys.executable, "-m", "qml_mp", *arguments],
        cwd=release, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert (ended.returncode, says in ended.stdout + ended.stderr) == (code, True), ended
