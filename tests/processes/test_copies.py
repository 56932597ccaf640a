"""Tests: a server on the copy of a storage leaves the original alone; what is left in memory is removed."""

from __future__ import annotations

import os
import signal
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.cli.command import Qml
from tests.postgres_cluster import remove_schema
from tests.processes.apps_faults import open_files
from tests.processes.harness import Server, enqueue, is_gone, wait_for_state, wait_until
from tests.storage.helpers import in_schema, open_patiently, patient_url
from tests.storage_rows import run_raw

MakeServer = Callable[..., Server]
GATED = "tests.processes.apps_storage_faults:app"
SOON = {
    "QML_MP_ENABLE_HEARTBEAT": "yes",
    "QML_MP_HEARTBEAT_INTERVAL": "0.1",
    "QML_MP_DEAD_SERVER_TIMEOUT": "2",
    "QML_MP_ORPHAN_GRACE": "1",
}


@pytest.fixture
def make_copy(
    request: pytest.FixtureRequest, url: str, storage: Storage, tmp_path: Path
) -> Iterator[Callable[[], str]]:
    """Copies the storage as a backup that is put back elsewhere does; the URL of the copy."""
    schemas: list[str] = []

    def make() -> str:
        if url.startswith("sqlite"):
            with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
                connection.execute("VACUUM INTO ?", [str(tmp_path / "copy.db")])
            return f"sqlite:///{tmp_path / 'copy.db'}"
        server = request.getfixturevalue("postgres_url")
        schemas.append(f"p_{uuid.uuid4().hex[:12]}")
        copy = in_schema(server, schemas[0])
        with closing(open_patiently(copy)) as made:
            made.migrate()
        for table in ("servers", "workers", "jobs"):
            run_raw(storage, f"INSERT INTO {schemas[0]}.{table} SELECT * FROM {{s}}{table}")
        return copy

    yield make
    for schema in schemas:
        remove_schema(request.getfixturevalue("postgres_url"), schema)


def test_a_server_on_a_copy_takes_over_the_jobs_there_and_ends_nothing_of_the_original(
    server: MakeServer, storage: Storage, tmp_path: Path, make_copy: Callable[[], str]
) -> None:
    one = server("-w", "1", app=GATED, **SOON).start()
    (worker,) = one.worker_pids().values()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    wait_for_state(storage, job_id, StateName.PROCESSING)
    (tmp_path / "other").mkdir()

    copy = make_copy()
    two = Server(url=copy, folder=tmp_path / "other", app=GATED, flags=("-w", "1"), environment=SOON)
    try:
        two.start()
        two.wait_until_running(claim_seq=2)
        assert not is_gone(worker)
        (tmp_path / "gate").touch()

        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
        with closing(open_patiently(copy)) as copied:
            assert wait_for_state(copied, job_id, StateName.SUCCEEDED).claim_seq == 2
        assert two.stop() == 0
    finally:
        two.clean_up()
    assert one.worker_pids() == {1: worker}
    warnings = [line for line in one.log().splitlines() if "WARNING" in line]
    # On a busy machine a lock may be waited for longer than a loop or a worker is patient.
    assert [line for line in warnings if "is tried again in" not in line and "try again" not in line] == []
    assert one.stop() == 0


def test_no_command_on_a_copy_finds_the_servers_of_the_original(
    server: MakeServer, storage: Storage, make_copy: Callable[[], str], tmp_path: Path
) -> None:
    one = server("-w", "1").start()

    copy = make_copy()
    with closing(open_patiently(copy)) as copied:
        copied_rows = [row.process for row in copied.list_servers()]
        copied_rows += [row.process for row in copied.list_workers()]
    said = Qml(folder=tmp_path)("--url", patient_url(copy), "stop", "--now")

    assert list(map(host.is_alive, copied_rows)) == [None, None]
    assert [host.is_alive(row.process) for row in storage.list_servers()] == [True]
    assert said.code != 0
    assert "copied from" in said.err
    assert one.stop() == 0


def test_the_folder_of_a_killed_server_is_gone_once_the_next_server_has_started(tmp_path: Path) -> None:
    folders = [tmp_path / "killed", tmp_path / "next"]
    for folder in folders:
        folder.mkdir()
    killed = Server(url="memory://", folder=folders[0], flags=("-w", "1"))
    other = Server(url=f"sqlite:///{tmp_path / 'jobs.db'}", folder=folders[1], flags=("-w", "1"))
    try:
        killed.start(ready=None)
        wait_until(lambda: "is ready" in killed.log(), what=killed.log)
        left = wait_until(lambda: memory_folder_of(killed))
        assert left.exists()  # a server beside this test may remove it from now on
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()

        other.start()

        assert not left.exists()
        assert other.stop() == 0
    finally:
        killed.clean_up()
        other.clean_up()


def memory_folder_of(server: Server) -> Path | None:
    """Where the database that it has open lies."""
    files = (Path(file) for file in open_files(server.pid).values())
    return next((file.parent for file in files if file.name == "memory.db"), None)
