"""Tests: a server whose PostgreSQL lets nobody in, lets nobody write, or lacks the schema, for a while."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    Server,
    enqueue,
    left_in_registry,
    state_of,
    wait_for_a_beat,
    wait_for_state,
    wait_until,
)

APP = "tests.processes.apps_storage_faults:app"
END_SESSIONS = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{role}'"
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE usename = %s AND query LIKE 'LISTEN%%'"

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One that the server logs in as, and that does not own the tables."""

    name: str
    admin: psycopg.Connection[Any]

    def run(self, statement: str) -> None:
        """SQL about it; `{role}` stands for its name."""
        self.admin.execute(statement.format(role=self.name).encode())

    def log_in_to(self, url: str) -> str:
        """The URL, with it as the user."""
        place = urlsplit(url)
        return place._replace(netloc=f"{self.name}@{place.hostname}:{place.port}").geturl()


@pytest.fixture
def role(postgres_url: str, storage: Storage) -> Iterator[Role]:
    storage.migrate()
    schema = storage.url.rpartition("schema=")[2]
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        made = Role(name=f"role_{uuid.uuid4().hex[:8]}", admin=admin)
        made.run("CREATE ROLE {role} LOGIN")
        made.run(f"GRANT USAGE ON SCHEMA {schema} TO {{role}}")
        made.run(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {{role}}")
        yield made
        made.run(END_SESSIONS)
        made.run("DROP OWNED BY {role}")
        made.run("DROP ROLE {role}")


def starts(one: Server) -> list[str]:
    return [line.job_id for line in one.journal() if line.what == "start"]


@contextmanager
def without_schema(storage: Storage, postgres_url: str) -> Iterator[None]:
    """Within the block it is gone, and afterwards restored: nobody may have made it meanwhile."""
    schema = storage.url.rpartition("schema=")[2]
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f"ALTER SCHEMA {schema} RENAME TO {schema}_kept".encode())
        try:
            yield
        finally:
            made = admin.execute("SELECT to_regnamespace(%s)", [schema]).fetchone()
            admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE".encode())
            admin.execute(f"ALTER SCHEMA {schema}_kept RENAME TO {schema}".encode())
    assert made == (None,)


@pytest.mark.parametrize(
    ("begin", "end", "said"),
    [
        pytest.param(
            "ALTER ROLE {role} CONNECTION LIMIT 0", "ALTER ROLE {role} CONNECTION LIMIT -1",
            "too many connections", marks=pytest.mark.fault(39), id="no connection is left",
        ),
        pytest.param(
            "ALTER ROLE {role} SET default_transaction_read_only = on",
            "ALTER ROLE {role} RESET default_transaction_read_only",
            "read-only transaction", marks=pytest.mark.fault(41), id="read-only",
        ),
    ],
)  # fmt: skip
def test_the_running_job_is_written_and_the_next_ones_run_when_it_is_over_and_no_worker_exits(
    server: Callable[..., Server],
    storage: Storage,
    role: Role,
    tmp_path: Path,
    begin: str,
    end: str,
    said: str,
) -> None:
    one = server("-v", "-w", "2", app=APP, QML_MP_HEARTBEAT_INTERVAL="0.5")
    one.url = role.log_in_to(one.url)
    one.start(ready=2)
    workers = one.worker_pids()
    running_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    wait_until(one.journal, what=one.log)

    role.run(begin)
    role.run(END_SESSIONS)
    (tmp_path / "gate").touch()
    ids = [enqueue(storage, "plain") for _ in range(5)]
    wait_until(lambda: one.log().count("Cannot write an outcome") >= 3, what=one.log)
    meanwhile = starts(one), state_of(storage, running_id)

    role.run(end)

    assert meanwhile == ([running_id], StateName.PROCESSING)
    assert said in one.log()
    for job_id in (running_id, *ids):  # a worker that waits for a processor gives back what it has not begun
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
        assert (job.failures, job.crashes) == (0, 0)
    assert sorted(starts(one)) == sorted([running_id, *ids])
    assert one.worker_pids() == workers
    assert "stopped (pid" not in one.log()
    # The supervisor is back too: one that still finds no storage has hardly any time for leaving it.
    wait_for_a_beat(one, storage)
    assert one.stop() == 0
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.nightly
def test_a_server_that_has_no_connection_left_to_listen_by_says_so(
    server: Callable[..., Server], storage: Storage, role: Role
) -> None:
    one = server("-w", "1", app=APP)
    one.url = role.log_in_to(one.url)
    one.start()
    wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
    wait_until(lambda: role.admin.execute(LISTENERS, [role.name]).fetchone(), what=one.log)

    role.run("ALTER ROLE {role} CONNECTION LIMIT 2")  # one for the worker, one for the supervisor
    role.run(f"{END_SESSIONS} AND query LIKE 'LISTEN%'")

    wait_until(lambda: "Listening for commits failed" in one.log(), what=one.log)
    assert "too many connections for role" in one.log()
    wait_for_state(storage, enqueue(storage, "plain"), StateName.SUCCEEDED)
    role.run("ALTER ROLE {role} CONNECTION LIMIT -1")
    wait_until(lambda: "Commits wake this server again" in one.log(), what=one.log)
    assert one.log().count("Listening for commits failed") == 1
    assert one.stop() == 0


def test_a_schema_that_is_gone_until_it_is_restored_is_made_by_no_server_and_no_new_worker(
    server: Callable[..., Server], storage: Storage, postgres_url: str
) -> None:
    one = server("-v", "-w", "1", app=APP).start()
    [worker_pid] = one.worker_pids().values()

    with without_schema(storage, postgres_url):
        os.kill(worker_pid, signal.SIGKILL)
        wait_until(lambda: one.log().count("Worker 1 is ready") == 2, what=one.log)
        wait_until(lambda: one.log().count("Cannot claim a job") >= 3, what=one.log)
        wait_until(lambda: "Storage cannot be reached" in one.log(), what=one.log)

    job_id = enqueue(storage, "plain")
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert one.stop() == 0
