"""Tests of servers: promises that no other test shows. Each kills a mutant (tests/mutants)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.processes.harness import Server, wait_until

# Each import notes when it began. From the second on it fails.
APP = """
import pathlib, time
from qml_mp import QmlApp

begun = pathlib.Path(__file__).with_name("begun")
with begun.open("a") as file:
    print(time.monotonic(), file=file)
if pathlib.Path(__file__).with_name("broken").exists():
    raise RuntimeError("bad deploy")
app = QmlApp()
"""


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_workers_that_cannot_boot_are_forked_with_growing_pauses(
    server: Callable[..., Server], tmp_path: Path
) -> None:
    """It takes 4 s, as the pauses are of half a second, one, and two."""
    (tmp_path / "growing_app.py").write_text(APP)
    begun = tmp_path / "begun"
    one = server("-w", "1", app="growing_app:app", PYTHONPATH=str(tmp_path)).start()
    (worker,) = one.worker_pids().values()
    (tmp_path / "broken").touch()
    before = len(begun.read_text().splitlines())

    os.kill(worker, signal.SIGKILL)

    def boots() -> list[float]:
        return [float(line) for line in begun.read_text().split("\n")[before:-1]]

    wait_until(lambda: len(boots()) >= 4, what=one.log)
    first, *_, fourth = boots()[:4]
    assert fourth - first >= 0.5 + 1 + 2


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_server_that_is_told_to_stop_begins_no_other_job(
    server: Callable[..., Server], storage: Storage
) -> None:
    storage.enqueue_many([Job.new("quick", {"busy_s": 0.01}) for _ in range(3000)])
    one = server("-w", "1", QML_MP_SHUTDOWN_TIMEOUT="5").start()
    wait_until(one.journal, what=one.log)

    code = one.stop()

    assert code == 0, one.log()
    assert storage.claims() == []
    assert storage.list_jobs(JobFilter(states=[StateName.ENQUEUED]), limit=1).jobs
