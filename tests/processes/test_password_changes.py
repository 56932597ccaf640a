"""Tests: a server whose PostgreSQL password is changed while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from qml_mp.core.state import StateName
from tests.postgres_login import cluster_that_asks, url_of
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until

PASSWORD = "Zq7XZq7X"


@pytest.fixture
def admin() -> Iterator[psycopg.Connection]:
    """The superuser of a server with a role `clerk`, which owns a database of its own."""
    with cluster_that_asks() as connection:
        connection.execute(f"CREATE ROLE clerk LOGIN PASSWORD '{PASSWORD}'")
        connection.execute("CREATE DATABASE jobs OWNER clerk")
        yield connection


@pytest.fixture
def one(admin: psycopg.Connection, tmp_path: Path) -> Iterator[Server]:
    """A running server of the role."""
    url = url_of(admin, f"clerk:{PASSWORD}", database="jobs")
    server = Server(
        url=url, folder=tmp_path, app="tests.processes.apps_storage_faults:app", flags=("-v", "-w", "1")
    )
    yield server.start()
    server.clean_up()


@pytest.mark.fault(85)
def test_a_server_whose_password_is_changed_waits_for_the_old_one_and_loses_nothing(
    one: Server, admin: psycopg.Connection, tmp_path: Path
) -> None:
    with closing(one.storage) as storage:
        job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    wait_until(one.journal, what=one.log)
    pids = one.worker_pids()

    admin.execute("ALTER ROLE clerk PASSWORD 'another'")
    admin.execute("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'clerk'")
    (tmp_path / "gate").touch()
    wait_until(lambda: one.log().count("Cannot write an outcome") >= 2, what=one.log)
    admin.execute(f"ALTER ROLE clerk PASSWORD '{PASSWORD}'")

    with closing(one.storage) as storage:
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert (job.claim_seq, job.crashes) == (1, 0)
    assert one.worker_pids() == pids
    assert one.stop() == 0
    assert "Put the right user and password into the URL" in one.log()
    assert PASSWORD not in one.log()
