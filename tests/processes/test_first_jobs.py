"""Tests: workers that die in their very first job were ready; those that die before that cannot boot."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.clock import SystemClock
from qml_mp.core.state import StateName
from qml_mp.events.emitter import new_emitter
from qml_mp.ipc.troubles import TroubleTable
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.workers.pool import WorkerPool
from qml_mp.supervisor.workers.worker_process import WorkerSpec
from tests.nightly.first_jobs import run_first_jobs
from tests.nightly.report import table
from tests.nightly.scenario import Task
from tests.processes.harness import APP, Server, enqueue, left_in_registry, wait_for_state, wait_until

MakeServer = Callable[..., Server]
ENDINGS = {
    "cannot boot": {"exit_code": 3},
    "left": {"exit_code": 80},
    "recycled": {"exit_code": 81},
    "broken": {"exit_code": 82},
    "fine": {"exit_code": 0},
    "killed": {"signal_number": int(signal.SIGKILL)},
}


@pytest.mark.fault(94)
@pytest.mark.parametrize("backend", ["sqlite", "postgres"])
def test_killers_at_the_head_of_the_queue_stop_no_server_and_keep_no_job_from_running(
    request: pytest.FixtureRequest, backend: str
) -> None:
    url = request.getfixturevalue("postgres_url") if backend == "postgres" else None

    row = run_first_jobs(
        Task(scenario="first-jobs", backend=backend, postgres_url=url, seed=1, count=2, unit="starts")
    )

    assert row.broken == (), table([row])
    assert row.done == 2


class ClosesStorage(Part):
    """All that has to get ready for a fork in these tests."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def before_fork(self) -> None:
        self._storage.close()


@pytest.fixture
def pool(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerPool]:
    """A pool of one worker, which nobody looks at but the test."""
    monkeypatch.setenv("QML_TEST_JOURNAL", str(tmp_path / "journal"))
    config, events = ServerConfig(worker_count=1), new_emitter()
    registration = ServerRegistration(config, clock=SystemClock(), events=events, facts=AppFacts())
    registration.register(storage)
    spec = WorkerSpec(
        server_id=registration.id, config=config, url=storage.url, source=NamedProgram(spec=APP),
        troubles=TroubleTable(),
    )  # fmt: skip
    pool = WorkerPool(spec, all_parts=ClosesStorage(storage), clock=SystemClock(), events=events)
    yield pool
    pool.kill_all(CancelReason.SHUTDOWN)
    wait_until(lambda: pool.reap() is not None and len(pool) == 0, what="the end of the pool")


@pytest.mark.fault(94)
@pytest.mark.parametrize("ending", list(ENDINGS))
def test_a_worker_that_died_in_its_first_job_before_anybody_looked_was_ready(
    pool: WorkerPool, storage: Storage, ending: str
) -> None:
    enqueue(storage, "die", **ENDINGS[ending])
    pool.spawn_workers()

    assert select.select(pool.fds(), [], [], 60)[0]
    (death,) = pool.reap()

    assert pool.boots.was_ever_ready
    assert pool.boots.error is None
    assert death.was_busy
    assert not death.was_orderly
    assert pool.boots.useless == 0  # its replacement need not wait


@pytest.mark.fault(60)
def test_the_next_ready_worker_does_not_end_the_row_of_those_that_died_idle(pool: WorkerPool) -> None:
    pool.spawn_workers()
    (worker,) = pool
    wait_until(lambda: worker.has_booted)
    os.kill(worker.child.pid, signal.SIGKILL)

    assert select.select(pool.fds(), [], [], 60)[0]
    (death,) = pool.reap()
    pool.boots.succeeded()

    assert not death.was_busy
    assert pool.boots.useless == 1


@pytest.mark.fault(10)
@pytest.mark.parametrize("exit_code", [80, 81])
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
@pytest.mark.parametrize(("how", "workers"), [("os._exit(3)", 1), ("os._exit(80)", 5)])
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
