"""Tests: what a worker does while it cannot know what came of a claim, or while storage refuses to go on."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.postgres_cluster import throwaway_cluster
from tests.processes.harness import Server, enqueue, is_stopped, state_of, wait_for_state, wait_until
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import patient_url
from tests.storage_rows import change_raw_job, hold_writes, pause_writes, run_raw

APP = "tests.processes.apps_storage_faults:app"
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


def starts(one: Server) -> list[str]:
    return [line.job_id for line in one.journal() if line.what == "start"]


def assert_one_run_each(one: Server, storage: Storage, ids: list[str]) -> None:
    """Every job has succeeded in its first run, and no worker has died. A worker that has to wait for a
    processor gives back what it holds, so claims may be more."""
    for job_id in ids:
        job = wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.FAILED)
        assert (job.state_name, job.failures, job.crashes) == (StateName.SUCCEEDED, 0, 0), one.log()
    assert sorted(starts(one)) == sorted(ids)
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
                meanwhile = starts(one), state_of(storage, late_id), state_of(storage, other_id)

            assert meanwhile == ([], StateName.ENQUEUED, StateName.ENQUEUED)
            assert_one_run_each(one, storage, [late_id, other_id])
            assert starts(one) == [late_id, other_id]
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


@pytest.fixture
def role(postgres_url: str, storage: Storage) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A role that may use the tables but does not own them, and a way to run SQL about it; `{role}` and
    `{s}` stand for its name and the schema's."""
    name = f"role_{uuid.uuid4().hex[:8]}"
    storage.migrate()
    schema = storage.url.rpartition("schema=")[2]
    with psycopg.connect(postgres_url, autocommit=True) as admin:

        def run(statement: str) -> None:
            admin.execute(statement.format(role=name, s=schema).encode())

        run("CREATE ROLE {role} LOGIN")
        run("GRANT USAGE ON SCHEMA {s} TO {role}")
        run("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {s} TO {role}")
        yield name, run
        run("DROP OWNED BY {role}")
        run("DROP ROLE {role}")


@pytest.mark.fault(81)
def test_an_outcome_that_a_trigger_refuses_is_written_as_soon_as_it_lets_it(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    one = server("-v", "-w", "1", app=APP).start()
    ids = [enqueue(storage, "gated", gate=str(gate))]
    wait_until(lambda: starts(one), what=one.log)
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
