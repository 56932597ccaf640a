"""Tests: `--preload`, which imports the app in the supervisor, so that workers are cheap copies."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.processes.harness import ROOT, Server, enqueue, wait_for_state, wait_until

MakeServer = Callable[..., Server]

COPIED = """
import gc, os
from qml_mp import QmlApp
with open({path!r}, "a") as stream:
    print(os.getpid(), file=stream)
app = QmlApp()
@app.job()
def look() -> dict:
    return {{"frozen": gc.get_freeze_count(), "pid": os.getpid()}}
"""
THREADED = """
import threading, time
from qml_mp import QmlApp
app = QmlApp()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
"""
TELLING = """
import logging, os, threading, time
from qml_mp import WorkerContext
from tests.processes.jobs_app import app
from tests.processes.journal import note
class Handler(logging.Handler):
    def emit(self, record):
        if threading.active_count() == 1:
            threading.Thread(target=time.sleep, args=(600,), name="a handler's", daemon=True).start()
logging.getLogger().addHandler(Handler(logging.ERROR))
@app.job()
def stay_until_told(ctx: WorkerContext, path: str) -> None:
    note(ctx, "start")
    while not os.path.exists(path):
        time.sleep(0.01)
"""
OPENING = """
import os, socket
from qml_mp import QmlApp
app = QmlApp({url!r})
@app.job()
def work() -> None: ...
work.enqueue()
stats = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
reading, writing = os.pipe()
os.close(reading)
"""
READING = """
import sqlite3
from qml_mp import QmlApp
app = QmlApp()
connection = sqlite3.connect({path!r})
connection.execute("SELECT count(*) FROM qml_jobs").fetchone()
"""


def importers(tmp_path: Path) -> list[int]:
    """The processes that imported the app."""
    return [int(line) for line in (tmp_path / "imports").read_text().split()]


def test_a_preloaded_app_is_imported_by_the_supervisor_alone_and_its_objects_are_frozen(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "copied_app.py").write_text(COPIED.format(path=str(tmp_path / "imports")))
    one = server("-w", "3", "--preload", app="copied_app:app", PYTHONPATH=str(tmp_path)).start(ready=3)

    seen = wait_for_state(storage, enqueue(storage, "look"), StateName.SUCCEEDED).result

    assert isinstance(seen, dict)
    assert isinstance(seen["frozen"], int)
    assert seen["frozen"] > 1000
    assert seen["pid"] in one.worker_pids().values()
    assert len(importers(tmp_path)) == 2  # the probe's and the supervisor's
    assert importers(tmp_path)[1] == one.pid
    os.kill(int(str(seen["pid"])), signal.SIGKILL)
    wait_until(lambda: seen["pid"] not in (now := one.worker_pids().values()) and len(now) == 3)
    assert len(importers(tmp_path)) == 2
    assert one.stop() == 0


def test_an_app_that_starts_threads_when_imported_cannot_be_preloaded(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "threaded_app.py").write_text(THREADED)
    one = server("-w", "1", "--preload", app="threaded_app:app", PYTHONPATH=str(tmp_path))

    one.start(ready=None)

    assert one.wait() == 2
    assert "importing 'threaded_app:app' started 1 thread of Python" in one.log()
    assert storage.list_servers() == []


@pytest.mark.fault(65)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_an_app_that_has_the_sqlite_file_open_when_imported_cannot_be_preloaded(
    server: MakeServer, storage: Storage, url: str, tmp_path: Path
) -> None:
    (tmp_path / "reading_app.py").write_text(READING.format(path=url.removeprefix("sqlite:///")))
    one = server("-w", "1", "--preload", app="reading_app:app", PYTHONPATH=str(tmp_path))

    one.start(ready=None)

    assert one.wait() == 2
    assert "connections of its own to sqlite:///" in one.log()
    assert storage.list_servers() == []


def test_an_app_is_told_which_of_what_it_opens_when_imported_is_not_there_in_preloaded_workers(
    server: MakeServer, storage: Storage, url: str, tmp_path: Path
) -> None:
    """Its connections of ours are: they are opened again."""
    (tmp_path / "opening_app.py").write_text(OPENING.format(url=url))
    one = server("-w", "1", "--preload", "--burst", app="opening_app:app", PYTHONPATH=str(tmp_path))

    one.start(ready=None)

    assert one.wait() == 0
    [told] = re.findall(r"importing 'opening_app:app' has left open: (.*)\. In the workers", one.log())
    assert sorted(each.split()[0] for each in told.split(", ")) == ["pipe", "socket"]
    assert {job.state_name for job in storage.list_jobs(JobFilter()).jobs} == {StateName.SUCCEEDED}


def test_a_thread_that_logging_starts_in_the_supervisor_of_a_preloaded_app_ends_no_server(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    """Error trackers have one from their first record on."""
    (tmp_path / "telling_app.py").write_text(TELLING)
    one = server(
        "-w", "2", "--preload", app="telling_app:app", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}",
        QML_MP_MAX_CRASHES="1",
    ).start(ready=2)  # fmt: skip
    staying = enqueue(storage, "stay_until_told", path=str(tmp_path / "told"))
    [begun] = wait_until(one.journal, what="the job")
    wait_for_state(storage, enqueue(storage, "die"), StateName.FAILED)

    def is_told_once_another_has_died() -> bool:
        for pid in {*one.worker_pids().values()} - {begun.pid}:  # one that was there before the error
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return "Cannot fork: this process has" in one.log()

    wait_until(is_told_once_another_has_died, what=one.log)

    (tmp_path / "told").touch()
    assert wait_for_state(storage, staying, StateName.SUCCEEDED).claim_seq == 1
    assert wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    wait_until(lambda: "a handler's" in str(storage.list_servers()[0].trouble), what=one.log)
    assert one.stop() == 0


def test_without_preload_an_app_may_start_threads_when_imported(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "threaded_app.py").write_text(THREADED)
    one = server("-w", "1", app="threaded_app:app", PYTHONPATH=str(tmp_path)).start()

    assert one.stop() == 0


@pytest.mark.fault(66)
def test_a_worker_that_is_silent_for_too_long_at_its_boot_is_killed_and_replaced(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    faults = "tests.processes.apps_faults:app"
    one = server("-w", "1", app=faults, QML_TEST_HANG=str(mark), QML_MP_BOOT_TIMEOUT="3")

    one.start()

    assert "is not ready after 3s; killing it" in one.log()
    assert wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.fault(66)
def test_an_app_whose_import_never_ends_is_given_up(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "endless_app.py").write_text("import time\ntime.sleep(600)\n")  # longer than anybody waits
    one = server("-w", "1", app="endless_app:app", PYTHONPATH=str(tmp_path), QML_MP_BOOT_TIMEOUT="0.5")

    one.start(ready=None)

    assert one.wait() == 3
    assert "was not imported within 500ms" in one.log()
