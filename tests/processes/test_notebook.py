"""Tests: in a notebook, with a real kernel, functions that are defined in cells run as jobs."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from qml_mp import host
from qml_mp.core.answers import ReloadAnswer, ReloadedCode, ReloadState
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.examples.test_readme import section
from tests.processes.harness import PATIENCE_S, ROOT, wait_until

RunCell = Callable[[str], str]


@pytest.fixture
def run_cell(tmp_path: Path, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunCell]:
    """Runs a cell in a kernel of its own: what it printed, or the error that it raised."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Of ports, it would pick free ones, which others may take before the kernel does.
    manager = KernelManager(transport="ipc", ip=str(open_folder / "kernel"))
    manager.start_kernel(cwd=str(tmp_path), extra_arguments=["--log-level=50"])
    client = manager.client()
    client.start_channels()

    def run(code: str) -> str:
        told: list[str] = []

        def take(message: dict[str, Any]) -> None:
            content = message["content"]
            shown = content.get("data", {}).get("text/plain", "")
            told.append(content.get("text", "") + content.get("evalue", "") + shown)

        client.execute_interactive(code, timeout=PATIENCE_S, output_hook=take)
        return "".join(told)

    try:
        client.wait_for_ready(timeout=PATIENCE_S)
        yield run
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


CELLS = """
from dataclasses import dataclass
from qml_mp import BackgroundJobServer, QmlApp, ServerConfig, WorkerContext
app = QmlApp("sqlite:///jobs.db")

@dataclass
class Size:
    width: int

FACTOR = 2
TABLE = list(range(100_000))  # more than a pipe holds

def helper(size):
    return FACTOR * TABLE[size.width]

@app.job()
def double(size: Size) -> int:
    return helper(size)

@app.job()
def grow(size: "Size", by: "int" = 1) -> None: ...

@app.job()
async def lead(ctx: WorkerContext, width: int) -> str:
    ctx.then(double.job(Size(width)))
    ctx.then(app.make_job("grow", {"size": {"width": 4}}))
    return double.enqueue(Size(10 * width)).id

import units

@app.job()
def unit() -> int:
    return units.UNIT

@app.on_failure
def note(job, error): ...

@app.recurring("@yearly")
def report() -> None: ...
"""
START = """
server = BackgroundJobServer(ServerConfig(worker_count=1), app.storage, app.program)
server.start()
"""


def test_functions_of_cells_run_and_a_cell_that_runs_again_replaces_its_function(
    run_cell: RunCell, tmp_path: Path
) -> None:
    # Some 5 s: a kernel, and three starts of an interpreter.
    [shown] = re.findall(r"```python\n(from qml_mp import Back.*?)```", section("Every day"), flags=re.DOTALL)
    assert run_cell(shown) == "144"
    assert run_cell("server.stop()") == ""

    units = tmp_path / "units.py"
    units.write_text("UNIT = 1\n")
    assert run_cell(CELLS) == ""
    assert run_cell(CELLS.partition("FACTOR = 2")[2]) == ""  # again: replaced, and no error
    assert run_cell(START) == ""

    told = run_cell("handle = lead.enqueue(3); print(app.handle(handle.wait(60)).wait(60))")

    assert told == "60\n"
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    wait_until(lambda: storage.job_counts()[StateName.SUCCEEDED] == 5)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
        assert "helper" not in "".join(database.iterdump())  # a job is a name and JSON
    assert run_cell("FACTOR = 5") == ""
    units.write_text("import no_such_library\n")
    refused = reload_ended(storage, ReloadState.REFUSED)
    assert (refused.workers, "No module named 'no_such_library'" in str(refused.why)) == (0, True)
    assert run_cell("print(unit.enqueue().wait(60))") == "1\n"
    units.write_text("UNIT = 10\n")
    reloaded = reload_ended(storage, ReloadState.DONE)
    assert (reloaded.replaced, reloaded.code) == (1, ReloadedCode.CELLS_OF_START)
    assert run_cell("print(unit.enqueue().wait(60))") == "10\n"
    assert run_cell("print(double.enqueue(Size(1)).wait(60))") == "2\n"  # what it was when the server began

    assert run_cell('@app.recurring("@monthly")\ndef report() -> None: ...') == ""
    assert run_cell("server.stop(); server.start()") == ""

    assert run_cell("print(double.enqueue(Size(1)).wait(60))") == "5\n"
    assert [template.cron for template in storage.list_recurring_jobs()] == ["@monthly"]
    [server] = storage.list_servers()
    pid = int(run_cell("import os; print(os.getpid())"))
    check_refusals(run_cell)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: host.is_alive(server.process) is False, what="the end of the server")
    storage.close()


def reload_ended(storage: Storage, state: ReloadState) -> ReloadAnswer:
    """What became of a reload of the only server, once it has ended in this way."""
    [server] = storage.list_servers()
    os.kill(server.process.pid, signal.SIGHUP)

    def ended() -> ReloadAnswer | None:
        answer = storage.list_servers()[0].answers.reload
        return answer if answer is not None and answer.state is state else None

    return wait_until(ended, what=f"a reload that is {state}")


def check_refusals(run_cell: RunCell) -> None:
    """In the same kernel, because each takes two seconds of a processor."""
    run_cell("lock = __import__('threading').Lock()")
    run_cell("@app.job()\ndef guarded() -> None:\n    with lock: pass")

    refused = run_cell(START)
    other = run_cell("@app.job(name='double')\ndef another() -> None: ...")
    missing = run_cell("import sys; sys.modules['cloudpickle'] = None; server.start()")

    assert "The job function 'guarded' cannot be sent to the server: TypeError" in refused
    assert "The method 'double' is registered twice" in other
    assert "pip install 'qml-mp[notebook]'" in missing
