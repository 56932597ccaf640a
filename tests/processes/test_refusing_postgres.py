"""Tests: a server whose PostgreSQL lets nobody in or write, lacks the schema, or has a pooler before it, and
claims whose replies are lost."""

from __future__ import annotations

import os
import signal
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.pgbouncer import PgBouncer, PgBouncerError, pgbouncer
from tests.postgres_cluster import throwaway_cluster
from tests.postgres_login import cluster_that_asks, url_of
from tests.processes.harness import (
    Server,
    enqueue,
    is_stopped,
    left_in_registry,
    state_of,
    wait_for_a_beat,
    wait_for_state,
    wait_until,
)
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import patient_url
from tests.storage_rows import change_raw_job, hold_writes, pause_writes, run_raw

APP = "tests.processes.apps_storage_faults:app"
END_SESSIONS = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{role}'"
LISTENERS = "SELECT pid FROM pg_stat_activity WHERE usename = %s AND query LIKE 'LISTEN%%'"


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


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
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
    meanwhile = one.starts(), state_of(storage, running_id)

    role.run(end)

    assert meanwhile == ([running_id], StateName.PROCESSING)
    assert said in one.log()
    for job_id in (running_id, *ids):  # a worker that waits for a processor gives back what it has not begun
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED)
        assert (job.failures, job.crashes) == (0, 0)
    assert sorted(one.starts()) == sorted([running_id, *ids])
    assert one.worker_pids() == workers
    assert "stopped (pid" not in one.log()
    # The supervisor is back too: one that still finds no storage has hardly any time for leaving it.
    wait_for_a_beat(one, storage)
    assert one.stop() == 0
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
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


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
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


REFUSE_SUCCESS_SQLITE = (
    "CREATE TRIGGER no BEFORE UPDATE ON {jobs} WHEN NEW.state = 'succeeded' "
    "BEGIN SELECT RAISE(ABORT, 'not now'); END",
)
REFUSE_SUCCESS_POSTGRES = (
    "CREATE FUNCTION {s}no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now'; END $$",
    "CREATE TRIGGER no BEFORE UPDATE ON {jobs} FOR EACH ROW WHEN (NEW.state = 'succeeded') "
    "EXECUTE FUNCTION {s}no()",
)
MakeServer = Callable[..., Server]


def assert_one_run_each(one: Server, storage: Storage, ids: list[str]) -> None:
    """Every job has succeeded in its first run, and no worker has died. A worker that has to wait for a
    processor gives back what it holds, so claims may be more."""
    for job_id in ids:
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.FAILED)
        assert (job.state_name, job.failures, job.crashes) == (StateName.SUCCEEDED, 0, 0), one.log()
    assert sorted(one.starts()) == sorted(ids)
    assert "stopped (pid" not in one.log()


@pytest.fixture
def cluster() -> Iterator[str]:
    """A server of our own, of which a process can be stopped."""
    with throwaway_cluster() as url:
        yield url


@pytest.mark.fault(77)
def test_while_a_claim_may_come_late_no_other_is_asked_for_and_the_late_one_is_run(
    cluster: str, tmp_path: Path
) -> None:
    # Some 10 s: a PostgreSQL of its own, of which a process is stopped.
    place = urlsplit(cluster)
    with (
        FlakyProxy(str(place.hostname), place.port or 5432) as proxy,
        closing(open_storage(patient_url(cluster))) as storage,
        closing(psycopg.connect(cluster, autocommit=True)) as admin,
        closing(psycopg.connect(cluster)) as holder,
    ):
        storage.migrate()
        pause_writes(storage, StateName.PROCESSING)
        url = place._replace(netloc=f"{place.username}@127.0.0.1:{proxy.port}").geturl()
        one = Server(url=url, folder=tmp_path, app=APP, flags=("-v", "-w", "1"))
        try:
            one.start()
            hold_writes(holder)
            late_id = enqueue(storage, "plain")
            backend = wait_until(lambda: waiting_backend(admin), what=one.log)
            with stopped(backend):
                holder.rollback()
                other_id = enqueue(storage, "plain")
                proxy.cut()
                wait_until(lambda: one.log().count("Cannot claim a job") >= 3, what=one.log)
                meanwhile = one.starts(), state_of(storage, late_id), state_of(storage, other_id)

            assert meanwhile == ([], StateName.ENQUEUED, StateName.ENQUEUED)
            assert_one_run_each(one, storage, [late_id, other_id])
            assert one.starts() == [late_id, other_id]
            assert one.stop() == 0
        finally:
            one.clean_up()


def waiting_backend(admin: psycopg.Connection) -> int | None:
    """The process in which a worker's claim waits."""
    row = admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name LIKE '%worker%' AND wait_event = 'advisory'"
    ).fetchone()
    return None if row is None else int(row[0])


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: is_stopped(pid), what="the stop")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.fault(81)
def test_an_outcome_that_a_trigger_refuses_is_written_as_soon_as_it_lets_it(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    one = server("-v", "-w", "1", app=APP).start()
    ids = [enqueue(storage, "gated", gate=str(gate))]
    wait_until(lambda: one.starts(), what=one.log)
    ids.append(enqueue(storage, "plain"))
    is_sqlite = storage.url.startswith("sqlite:")
    for statement in REFUSE_SUCCESS_SQLITE if is_sqlite else REFUSE_SUCCESS_POSTGRES:
        run_raw(storage, statement)

    gate.touch()
    wait_until(lambda: one.log().count("Cannot write an outcome") >= 3, what=one.log)
    meanwhile = [state_of(storage, job_id) for job_id in ids]
    run_raw(storage, "DROP TRIGGER no" + ("" if is_sqlite else " ON {jobs}"))

    assert meanwhile == [StateName.PROCESSING, StateName.ENQUEUED]
    assert_one_run_each(one, storage, ids)
    assert one.stop() == 0


@pytest.mark.fault(81)
def test_a_row_that_cannot_be_claimed_ends_failed_and_holds_nobody_up(
    server: MakeServer, storage: Storage
) -> None:
    storage.migrate()
    full = 2**63 - 1 if storage.url.startswith("sqlite") else 2**31 - 1
    bad_id = storage.enqueue(Job.new("plain", priority=9))
    change_raw_job(storage, bad_id, claim_seq=full)
    ids = [enqueue(storage, "plain") for _ in range(5)]

    one = server("-w", "1", app=APP).start()

    assert_one_run_each(one, storage, ids)
    bad = wait_for_state(storage, bad_id, StateName.FAILED)
    assert bad.last_error is not None
    assert bad.last_error.type == "UnclaimableRow"
    assert f"Job {bad_id} is failed: The row of this job cannot be claimed" in one.log()
    assert one.stop() == 0


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


@pytest.fixture
def pooler(postgres_url: str) -> Iterator[PgBouncer]:
    """One with fewer sessions than a server with two workers has connections."""
    try:
        with pgbouncer(postgres_url, pool_size=2) as running:
            yield running
    except PgBouncerError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_server_behind_a_pooler_runs_every_job_once_and_recovers(
    server: Callable[..., Server], storage: Storage, url: str, pooler: PgBouncer
) -> None:
    storage.migrate()
    one = server("-w", "2", QML_MP_POLLING_INTERVAL="0.2")
    one.url = pooler.before(url)
    one.start(ready=2)
    producer = one.storage
    ids = producer.enqueue_many(Job.new("quick", {}) for _ in range(100))
    late_id = producer.enqueue(Job.new("quick", {}, delay=timedelta(seconds=0.5)))
    fatal_id = enqueue(producer, "spin")
    spinning = wait_until(
        lambda: next((line for line in one.journal() if line.job_id == fatal_id), None), what=one.log
    )

    os.kill(spinning.pid, signal.SIGKILL)

    wait_until(lambda: sum(line.job_id == fatal_id for line in one.journal()) == 2, what=one.log)
    producer.close()
    for job_id in (*ids, late_id):
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 0
    runs = Counter(one.starts())
    assert {runs[job_id] for job_id in (*ids, late_id)} == {1}
    assert "A pooler stands before" in one.log()
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6
    assert left_in_registry(storage, one.log()) == []
