"""Tests: what a server does, and holds, that has nothing to do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import ROOT, Server, enqueue, wait_for_state

MakeServer = Callable[..., Server]

SHARING = """
import gc, sys
was_there = "qml_mp.app" in sys.modules
from qml_mp import QmlApp
app = QmlApp()
@app.job()
def look() -> list:
    return [was_there, gc.get_freeze_count()]
"""
FREEZING = """
import gc, os, signal
from qml_mp import BackgroundJobServer, QmlApp, ServerConfig, open_storage
{before}
before = gc.get_freeze_count()
app = QmlApp({url!r})
@app.job()
def tell_the_supervisor():
    os.kill(os.getppid(), signal.SIGALRM)
def told(signal, frame):
    assert gc.get_freeze_count() > 1000
    os.kill(os.getpid(), 15)
signal.signal(signal.SIGALRM, told)
BackgroundJobServer(ServerConfig(worker_count=1), open_storage({url!r}), app.program).run()
print(before, gc.get_freeze_count())
"""


def test_a_worker_inherits_what_every_app_imports_and_its_collector_leaves_that_alone(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "sharing_app.py").write_text(SHARING)
    one = server("-w", "1", app="sharing_app:app", PYTHONPATH=str(tmp_path))
    one.fresh = True  # what its supervisor has imported is what this is about
    one.start()

    seen = wait_for_state(storage, enqueue(storage, "look"), StateName.SUCCEEDED).result

    assert isinstance(seen, list)
    was_there, frozen = seen
    assert was_there is True
    assert isinstance(frozen, int)
    assert frozen > 1000
    assert one.stop() == 0


def _frozen_before_and_after(storage: Storage, *, before: str = "") -> list[int]:
    """The frozen objects of a host, before and after a run that ends with its first job."""
    enqueue(storage, "tell_the_supervisor")
    code = FREEZING.format(url=storage.url, before=before)
    return [int(count) for count in subprocess.check_output([sys.executable, "-c", code], cwd=ROOT).split()]


@pytest.mark.nightly
def test_a_host_has_its_collector_back_when_the_run_is_over(storage: Storage) -> None:
    assert _frozen_before_and_after(storage) == [0, 0]
