"""Tests of the storage: many jobs enqueued at once, by whichever way the backend has for them."""

from __future__ import annotations

import os
import signal
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import InvalidJob, StorageError
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.target import parse_target
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw, server_of
from tests.storage.helpers import (
    in_an_hour,
    in_children,
    open_patiently,
    open_sqlite,
    present,
    sqlite_connection,
)

Connect = Callable[[], Any]

SEVERAL_STATEMENTS = 5000


on_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)
"""SQLite announces nothing and has neither pipelines nor roles; test_sqlite_kill kills at every statement."""


def plain_jobs(number: int) -> list[Job]:
    return [Job.new("work", {"n": n, "text": "ä\t\\N\n"}) for n in range(number)]


def count(storage: Storage) -> int:
    return sum(storage.job_counts().values())


@pytest.fixture
def notifications(storage: Storage, url: str) -> Iterator[Callable[[], int]]:
    """How many announcements have come since it was asked last; PostgreSQL alone has them."""
    storage.migrate()
    with psycopg.connect(server_of(url), autocommit=True) as listener:
        listener.execute(f'LISTEN "{parse_target(url).channel}"'.encode())

        def come() -> int:
            listener.execute("SELECT")  # what was committed before has come with the reply
            return len(list(listener.notifies(timeout=0)))

        yield come


def test_jobs_of_every_kind_are_stored_in_one_bulk(storage: Storage) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    kinds: list[dict[str, Any]] = [
        {}, {"unique_key": "k"}, {"at": in_an_hour()}, {"at": past}, {"timeout": timedelta(seconds=3)},
        {"priority": 9, "max_retries": 0, "max_crashes": 2, "metadata": {"by": "ä"}, "queue": "other"},
    ]  # fmt: skip
    jobs = [Job.new("work", {"n": n, "text": "ä\t\\N\n"}, **kinds[n % 6]) for n in range(600)]

    ids = storage.enqueue_many(jobs)

    keyed = ids[1::6]
    assert set(keyed) == {jobs[1].id}  # of one key the first is stored
    for place in {0, 1, 2, 3, 4, 5, *range(594, 600)} - {595}:
        job, stored = jobs[place], present(storage, ids[place])
        assert stored.id == job.id
        state = StateName.SCHEDULED if place % 6 == 2 else StateName.ENQUEUED
        assert stored.state_name is state
        run_at = job.run_at if place % 6 == 2 else None
        assert replace(stored, state=job.state, run_at=run_at) == replace(job, run_at=run_at)
    assert count(storage) == 501


def test_a_bulk_enqueued_again_after_a_lost_reply_is_there_once(storage: Storage) -> None:
    jobs = plain_jobs(300)
    storage.enqueue(jobs[200])

    ids = [storage.enqueue_many(jobs), storage.enqueue_many(jobs)]

    assert ids == [[job.id for job in jobs]] * 2
    assert count(storage) == 300


def test_a_job_that_is_twice_in_a_bulk_is_refused_and_keeps_out_all(storage: Storage) -> None:
    jobs = plain_jobs(100)

    with pytest.raises(InvalidJob, match=rf"places 7 and 100 are .* same, {jobs[7].id} \('work'\)"):
        storage.enqueue_many([*jobs, jobs[7]])

    assert count(storage) == 0


def test_a_row_that_the_database_refuses_in_the_middle_keeps_out_all(storage: Storage, raw: Raw) -> None:
    refuse(raw, "bad")
    jobs = [*plain_jobs(120), Job.new("bad"), *plain_jobs(120)]

    with pytest.raises(StorageError, match=r"not_bad|refused"):
        storage.enqueue_many(jobs)

    assert count(storage) == 0
    assert len(storage.enqueue_many(jobs[:120])) == count(storage) == 120


def refuse(raw: Raw, method: str) -> None:
    """Have the database take no job of this method."""
    if raw.is_sqlite:
        raw.run(
            "CREATE TRIGGER refusal BEFORE INSERT ON {jobs} "
            f"WHEN new.method = '{method}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    else:
        raw.run(f"ALTER TABLE {{jobs}} ADD CONSTRAINT not_bad CHECK (method <> '{method}')")


def test_an_error_names_the_job_that_cannot_be_stored(storage: Storage) -> None:
    jobs = plain_jobs(60)
    bad = replace(jobs[40], payload={"x": float("nan")})

    with pytest.raises(InvalidJob, match=rf"place 40, {bad.id} \('work'\).*The payload at \['x'\] is nan"):
        storage.enqueue_many([*jobs[:40], bad, *jobs[41:]])

    assert count(storage) == 0


@pytest.mark.parametrize("again", [False, True], ids=["new", "one is there"])
def test_a_bulk_in_the_callers_transaction_goes_with_its_end(
    storage: Storage, connect: Connect, again: bool
) -> None:
    jobs = [*plain_jobs(100), Job.new("work", unique_key="k")]
    if again:
        storage.enqueue(jobs[50])
    connection = connect()

    undone = storage.enqueue_in(connection, jobs)
    connection.rollback()
    after_rollback = count(storage)
    done = storage.enqueue_in(connection, jobs)
    connection.execute("SELECT 1")  # the transaction can go on
    connection.commit()

    assert undone == done == [job.id for job in jobs]
    assert after_rollback == again
    assert count(storage) == 101


@on_postgres
def test_a_bulk_on_a_pipelined_connection_is_stored(storage: Storage, connect: Connect) -> None:
    storage.migrate()
    connection = connect()

    with connection.pipeline():
        storage.enqueue_in(connection, plain_jobs(100))
    connection.commit()

    assert count(storage) == 100


@on_postgres
def test_a_bulk_is_stored_in_a_table_with_row_security(storage: Storage, raw: Raw, url: str) -> None:
    role, schema = f"r_{uuid.uuid4().hex}", parse_target(url).schema
    raw.run(f"CREATE ROLE {role} LOGIN")
    raw.run(f'GRANT USAGE ON SCHEMA "{schema}" TO {role}')
    raw.run(f'GRANT ALL ON ALL TABLES IN SCHEMA "{schema}" TO {role}')
    raw.run("ALTER TABLE {jobs} ENABLE ROW LEVEL SECURITY")
    raw.run(f"CREATE POLICY all_rows ON {{jobs}} TO {role} USING (true) WITH CHECK (true)")

    with closing(open_storage(url.replace("//postgres@", f"//{role}@"))) as as_role:
        as_role.enqueue_many(plain_jobs(100))

    assert count(storage) == 100
    raw.run(f"DROP OWNED BY {role}")
    raw.run(f"DROP ROLE {role}")


@on_postgres
def test_a_bulk_is_announced_once(
    storage: Storage, connect: Connect, notifications: Callable[[], int]
) -> None:
    keyed = [Job.new("work", unique_key=str(n)) for n in range(60)]

    storage.enqueue_many([*plain_jobs(SEVERAL_STATEMENTS), *keyed])
    by_bulk = notifications()
    connection = connect()
    for job in (*plain_jobs(3), *keyed):
        storage.enqueue_in(connection, [job])
    before_commit = notifications()
    connection.commit()

    assert (by_bulk, before_commit, notifications()) == (1, 0, 1)


@on_postgres
@pytest.mark.parametrize("options", [{}, {"unique_key": "k"}, {"at": in_an_hour()}])
def test_a_job_is_announced_once_whoever_announces_with_a_commit(
    storage: Storage, url: str, connect: Connect, notifications: Callable[[], int], options: dict[str, Any]
) -> None:
    storage.enqueue(Job.new("first", **options))
    with_its_commit = notifications()
    other = connect()
    key = f"hashtextextended('{parse_target(url).channel}', 1)"
    other.execute(f"SELECT pg_advisory_xact_lock({key})")
    storage.enqueue(Job.new("second", **{**options, **dict.fromkeys(options.keys() & {"unique_key"}, "2")}))
    storage.job_counts()  # what was sent after the commit has been answered
    after_it = notifications()
    other.commit()

    assert (with_its_commit, after_it, notifications()) == (1, 1, 0)


@on_postgres
def test_what_stores_nothing_announces_nothing(storage: Storage, notifications: Callable[[], int]) -> None:
    keyed = [Job.new("work", unique_key=str(n)) for n in range(60)]
    storage.enqueue_many(keyed)
    notifications()

    storage.enqueue_many([replace(job, id=Job.new("x").id) for job in keyed])
    storage.enqueue(keyed[0])

    assert notifications() == 0


@on_postgres
@pytest.mark.fault(3)
@pytest.mark.parametrize("row", [1, SEVERAL_STATEMENTS // 2, SEVERAL_STATEMENTS])
def test_a_producer_killed_in_the_middle_of_a_bulk_leaves_none(
    storage: Storage, url: str, row: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.migrate()
    storage.close()
    jobs = plain_jobs(SEVERAL_STATEMENTS)

    def be_killed() -> None:
        rows = iter(range(1, SEVERAL_STATEMENTS + 1))
        write_row = psycopg.Copy.write_row

        def write_or_die(copy: psycopg.Copy, values: Any) -> None:
            if next(rows) == row:
                os.kill(os.getpid(), signal.SIGKILL)
            write_row(copy, values)

        monkeypatch.setattr(psycopg.Copy, "write_row", write_or_die)
        open_patiently(url).enqueue_many(jobs)

    [status] = in_children([be_killed])

    assert status == signal.SIGKILL
    assert count(storage) == 0
    assert len(storage.enqueue_many(jobs)) == count(storage) == SEVERAL_STATEMENTS


def test_the_tables_own_checks_hold_again_after_a_bulk_and_in_a_callers_transaction(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    bad = "UPDATE qml_jobs SET priority = 'high'"
    with closing(open_sqlite(path)) as storage:
        storage.enqueue_many(plain_jobs(SEVERAL_STATEMENTS))
        with sqlite_connection(storage).read() as ours, pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            ours.execute(bad)
        with closing(sqlite3.connect(path)) as theirs:
            theirs.execute(
                "CREATE TRIGGER no BEFORE INSERT ON qml_jobs WHEN NEW.method = 'no' "
                "BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        with pytest.raises(StorageError):
            storage.enqueue_many([*plain_jobs(SEVERAL_STATEMENTS), Job.new("no")])
        with sqlite_connection(storage).read() as ours, pytest.raises(sqlite3.IntegrityError, match="CHECK"):
            ours.execute(bad)

        with closing(sqlite3.connect(path)) as theirs:
            storage.enqueue_in(theirs, plain_jobs(SEVERAL_STATEMENTS))
            with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
                theirs.execute(bad)
