"""Tests: workers that die in their very first job were ready; those that die before that cannot boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, left_in_registry, wait_for_state
from tests.soak.first_jobs import run_first_jobs
from tests.soak.report import table
from tests.soak.scenario import Task

MakeServer = Callable[..., Server]


@pytest.mark.fault(94)
@few("backend", ["sqlite"], nightly=["postgres"])
def test_killers_at_the_head_of_the_queue_stop_no_server_and_keep_no_job_from_running(
    request: pytest.FixtureRequest, backend: str
) -> None:
    url = request.getfixturevalue("postgres_url") if backend == "postgres" else None

    row = run_first_jobs(
        Task(scenario="first-jobs", backend=backend, postgres_url=url, seed=1, count=2, unit="starts")
    )

    assert row.broken == (), table([row])
    assert row.done == 2


@pytest.mark.fault(10)
@few("exit_code", [80], nightly=[81])
def test_a_job_that_gives_an_exit_code_of_ours_is_not_told_as_an_orderly_leave(
    server: MakeServer, storage: Storage, exit_code: int
) -> None:
    one = server("-w", "1", QML_MP_MAX_CRASHES="1").start()

    job = wait_for_state(storage, enqueue(storage, "die", exit_code=exit_code), StateName.FAILED)

    assert job.last_error is not None
    assert f"exited with code {exit_code}" in job.last_error.message
    assert f"stopped (pid {job_pid(one)}): it exited with code {exit_code}" in one.log()
    assert one.stop() == 0


def job_pid(server: Server) -> int:
    """Of the worker that ran the only job."""
    (line,) = server.journal()
    return line.pid


@pytest.mark.fault(60)
@few("how, workers", [("os._exit(3)", 1)], nightly=[("os._exit(80)", 5)])
def test_an_import_that_ends_the_workers_without_a_word_stops_the_server_as_one_that_cannot_boot(
    server: MakeServer, storage: Storage, tmp_path: Path, how: str, workers: int
) -> None:
    # Imports where the supervisor probes it, and ends the process from the second import on.
    (tmp_path / "deadly_app.py").write_text(
        "import os, pathlib\n"
        "from qml_mp import QmlApp\n"
        f"mark = pathlib.Path({str(tmp_path / 'mark')!r})\n"
        "if mark.exists():\n"
        f"    {how}\n"
        "mark.touch()\n"
        "app = QmlApp()\n"
    )
    one = server("-w", str(workers), app="deadly_app:app", PYTHONPATH=str(tmp_path))

    one.start(ready=None)

    assert one.wait() == 3
    assert "workers in a row died while booting, without a reason" in one.log()
    assert left_in_registry(storage, one.log()) == []
