"""Tests: a server that starts gives back what earlier ones left, beside others that write."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from qml_mp import host
from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch
from qml_mp.supervisor import membership
from qml_mp.supervisor.loops.declarations import DeclarationsLoop
from qml_mp.supervisor.membership import join
from qml_mp.supervisor.run import Run
from tests.processes.harness import state_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    """A supervisor's, which waits for no lock for long."""
    with closing(
        open_storage(f"sqlite:///{tmp_path / 'jobs.db'}", patience=timedelta(milliseconds=50))
    ) as it:
        it.migrate()
        yield it


@pytest.fixture
def left_id(storage: Storage) -> str:
    """The job that a dead server has left in its dead worker's hands."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        dead = host.identity(process.pid)
        process.kill()
    storage.register_server(server(dead))
    storage.register_worker(WorkerInfo(id="worker", server_id="dead", number=1, process=dead, started_at=NOW))
    job_id = storage.enqueue(Job.new("m"))
    assert storage.fetch_and_lock_job(Fetch(worker_id="worker", server_id="dead", queues=(), registered=True))
    return job_id


def server(process: ProcessIdentity) -> ServerInfo:
    return ServerInfo(
        id="dead", name="dead", hostname="here", process=process, worker_count=1, queues=("default",),
        started_at=NOW, last_heartbeat=NOW,
    )  # fmt: skip


def join_while_another_writes(storage: Storage) -> Run:
    """It has the file until the start waits for it."""
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url=storage.url, facts=AppFacts())
    path = storage.url.removeprefix("sqlite:///")
    with closing(run.pool), closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        between = SimpleNamespace(between=lambda **_: other.in_transaction and other.execute("ROLLBACK"))
        join(storage, run, declarations=DeclarationsLoop(run), urgent_first=between)  # type: ignore[arg-type]
        assert not other.in_transaction  # it was waited for
    return run


def test_a_start_waits_for_another_writer_to_give_back_what_a_dead_server_left(
    storage: Storage, left_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = join_while_another_writes(storage)

    assert state_of(storage, left_id) is StateName.ENQUEUED
    assert [each.id for each in storage.list_servers()] == [run.registration.id]
    assert "Cannot give back" not in caplog.text


def test_a_start_that_cannot_give_back_in_time_says_so_and_leaves_it_to_a_loop(
    storage: Storage, left_id: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "_RECOVER_WITHIN_S", 0)

    run = join_while_another_writes(storage)

    assert state_of(storage, left_id) is StateName.PROCESSING
    assert {each.id for each in storage.list_servers()} == {"dead", run.registration.id}
    assert "Cannot give back what earlier runs left; a loop tries again" in caplog.text
