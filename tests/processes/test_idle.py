"""Tests: what a server does, and holds, that has nothing to do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import ROOT, Server, enqueue, wait_for_state, wait_until
from tests.statement_trace import TRACE, statements

MakeServer = Callable[..., Server]

_POLLS = 20
_POLLED_EVERY_S = 0.04
_LOOKS_FOR_JOBS = "ORDER BY priority DESC, created_at, id"  # of the supervisor; a worker chooses a single job
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


def test_the_supervisor_looks_for_jobs_in_the_stead_of_its_idle_workers(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()
    environment = {TRACE: str(traces), "QML_MP_POLLING_INTERVAL": str(_POLLED_EVERY_S)}
    one = server("-w", "3", **environment)
    one.program = ("-m", "tests.statement_trace")
    one.start(ready=3)
    polls = before = 0

    def is_idle() -> bool:
        """Whether the workers were silent for some polls: each asks for a job once it is ready."""
        nonlocal polls, before
        if (sent := _sent_by_workers(traces, one)) != before:
            polls, before = _polls(traces, one), sent
        return _polls(traces, one) > polls + 5

    wait_until(is_idle, what="a server that is idle")
    began_s, polls = time.monotonic(), _polls(traces, one)

    wait_until(lambda: _polls(traces, one) > polls + _POLLS, what=f"{_POLLS} polls")

    # All three send less than half of what one that polls would send in this time: each looks now and then.
    sent = _sent_by_workers(traces, one) - before
    assert sent <= (time.monotonic() - began_s) / _POLLED_EVERY_S / 2
    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
    assert one.stop() == 0


def _polls(traces: Path, one: Server) -> int:
    return sum(_LOOKS_FOR_JOBS in text for text in statements(traces).get(one.pid, ()))


def _sent_by_workers(traces: Path, one: Server) -> int:
    return sum(len(statements(traces)[pid]) for pid in one.worker_pids().values())


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


def test_a_host_has_its_collector_back_when_the_run_is_over(storage: Storage) -> None:
    assert _frozen_before_and_after(storage) == [0, 0]


def test_what_a_host_has_frozen_itself_stays_frozen(storage: Storage) -> None:
    before, after = _frozen_before_and_after(storage, before="gc.freeze()")

    assert after > before - 100 > 1000  # some objects are gone
