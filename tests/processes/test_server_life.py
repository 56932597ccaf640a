"""Tests of the reference's own promises: start and stop, with real processes, on both backends."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp import BackgroundJobServer, Job, ServerConfig, Worker, WorkerContext, WorkerRegistry
from qml_mp.core.state import StateName, Succeeded
from qml_mp.errors import ServerAlreadyRunning, WorkerBootError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from tests.processes.harness import PATIENCE_S, state_of, wait_for_state, wait_until


class Touch(Worker):
    """Appends a byte to a file, after so long."""

    method_name = "touch"

    def __init__(self, path: Path, seconds: float = 0.0) -> None:
        self._path = path
        self._seconds = seconds

    def execute(self, job: Job, context: WorkerContext) -> str:
        self._path.with_suffix(".started").touch()
        time.sleep(self._seconds)  # the job's own work
        with self._path.open("ab") as stream:
            stream.write(b".")
        return "Test completed"


class Cancellable(Worker):
    """Returns why it was asked to end."""

    method_name = "cancellable"

    def __init__(self, started: Path) -> None:
        self._started = started

    def execute(self, job: Job, context: WorkerContext) -> str | None:
        self._started.touch()
        context.cancel.wait(PATIENCE_S)
        return context.cancel.reason


on_every_backend = pytest.mark.parametrize(
    "url",
    ["memory", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("sqlite", "postgres"))],
    indirect=True,
)
CONFIG = ServerConfig(
    server_name="test-server",
    worker_count=1,
    polling_interval=timedelta(milliseconds=10),
    enable_scheduler=False,
    shutdown_timeout=timedelta(seconds=PATIENCE_S),
)


def test_server_start_stop(storage: Storage, tmp_path: Path) -> None:
    server = BackgroundJobServer(
        replace(CONFIG, worker_count=2), storage, WorkerRegistry().register(Touch(tmp_path / "x"))
    )

    server.start()

    assert server.is_running()
    with pytest.raises(ServerAlreadyRunning):
        server.start()

    server.stop()

    assert not server.is_running()
    assert server.exit_code == 0
    server.stop()  # harmless


def test_a_stopped_server_can_start_again(storage: Storage, tmp_path: Path) -> None:
    # Some 6 s: each start is that of an interpreter, and imports everything.
    server = BackgroundJobServer(CONFIG, storage, WorkerRegistry().register(Touch(tmp_path / "x")))

    for _ in range(2):
        server.start()
        job_id = storage.enqueue(Job.new("touch"))
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
        server.stop()

    assert (tmp_path / "x").read_bytes() == b".."
    assert storage.list_servers() == []
    assert storage.list_workers() == []


@on_every_backend
def test_stop_waits_for_inflight_job_to_complete(storage: Storage, tmp_path: Path) -> None:
    registry = WorkerRegistry().register(Touch(tmp_path / "x", seconds=0.5))
    server = BackgroundJobServer(CONFIG, storage, registry)
    job_id = storage.enqueue(Job.new("touch"))
    server.start()
    wait_until((tmp_path / "x.started").exists)

    server.stop()

    assert (tmp_path / "x").read_bytes() == b"."
    job = storage.get(job_id)
    assert job is not None
    assert isinstance(job.state, Succeeded)
    assert job.result == "Test completed"


@on_every_backend
def test_worker_context_cancel_token_fires_on_stop(storage: Storage, tmp_path: Path) -> None:
    registry = WorkerRegistry().register(Cancellable(tmp_path / "started"))
    server = BackgroundJobServer(CONFIG, storage, registry)
    job_id = storage.enqueue(Job.new("cancellable"))
    server.start()
    wait_until((tmp_path / "started").exists)

    server.stop()

    job = storage.get(job_id)
    assert job is not None
    assert job.state_name is StateName.SUCCEEDED
    assert job.result == "shutdown"


def test_start_recovers_stranded_processing_jobs_with_no_workers(storage: Storage) -> None:
    long_ago = Job.new("noop", now=datetime.now(UTC) - timedelta(hours=1))
    storage.enqueue(long_ago)
    storage.fetch_and_lock_job(Fetch(worker_id="dead-worker", server_id="dead-server", queues=("default",)))
    config = replace(CONFIG, worker_count=0, stale_processing_after=timedelta(0))

    with BackgroundJobServer(config, storage, WorkerRegistry()):
        pass

    assert state_of(storage, long_ago.id) is StateName.ENQUEUED


@pytest.mark.nightly
def test_a_server_that_cannot_boot_says_why_and_does_not_run(storage: Storage) -> None:
    server = BackgroundJobServer(CONFIG, storage, "no_such_module:app")

    with pytest.raises(Exception, match="no_such_module") as caught:
        server.start()

    assert type(caught.value).__name__ in ("AppImportError", WorkerBootError.__name__)
    assert not server.is_running()
    assert storage.list_servers() == []


def test_a_dead_server_is_not_running_and_can_start_again(storage: Storage, tmp_path: Path) -> None:
    # Some 6 s: the same.
    server = BackgroundJobServer(CONFIG, storage, WorkerRegistry().register(Touch(tmp_path / "x")))
    server.start()
    (info,) = storage.list_servers()

    os.kill(info.process.pid, 9)
    wait_until(lambda: not server.is_running())
    server.start()

    job_id = storage.enqueue(Job.new("touch"))
    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    wait_until(lambda: len(storage.list_servers()) == 1, what="the end of the row of the dead one")
    server.stop()
    assert storage.list_servers() == []
