"""Tests of the storage: from version 1 to this code's with a database in use, whatever interrupts it."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qml_mp.clock import SystemClock
from qml_mp.core.answers import NO_ANSWERS
from qml_mp.core.outcome import Release
from qml_mp.core.state import StateName
from qml_mp.errors import SchemaMismatch, StorageError
from qml_mp.storage.migrate import latest_version
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres import migrations as postgres_migrations
from qml_mp.storage.sqlite import schema as sqlite_schema
from qml_mp.storage.store import Storage
from tests.storage.conftest import TABLES, Raw, raw_tables
from tests.storage.helpers import DONE, KEEP, fetch, finish_and_fetch, in_children, open_patiently
from tests.until import wait_until

JOB, CLAIMED, LONG = (f"0190b3a5-0000-7000-8000-00000000000{number}" for number in range(3))
LONG_METHOD = secrets.token_hex(50_000)
OLD = tuple(
    table
    for table in TABLES
    if table
    not in ("schema_version", "limits", "counters", "acts", "history", "failure_callbacks", "lost_attempts")
)


@pytest.fixture
def storage(opened: Callable[[], Storage]) -> Storage:
    """The storage under test, which is as `raw` makes it."""
    return opened()


@pytest.fixture
def raw(url: str, connect: Callable[[], Any]) -> Raw:
    """The tables of a database of version 1, with something in each of them."""
    with closing(connect()) as connection:
        if url.startswith("sqlite"):
            connection.execute("PRAGMA journal_mode = WAL")
            for statement in sqlite_schema.MIGRATIONS[0].sql.split(";\n"):
                connection.execute(statement)
        else:
            schema = f'"{url.rpartition("schema=")[2]}"'
            connection.execute(f"CREATE SCHEMA {schema}")
            connection.execute(
                f"CREATE TABLE {schema}.schema_version (version integer PRIMARY KEY, "
                "applied_at timestamptz NOT NULL DEFAULT now())"
            )
            connection.execute(postgres_migrations.MIGRATIONS[0].sql.format(s=schema))
        connection.commit()
    raw = raw_tables(url, connect)
    fill(raw)
    return raw


def fill(raw: Raw) -> None:
    """As a server of version 1 leaves it in the middle of its work."""
    now = raw.instant(datetime.now(UTC))
    rows: dict[str, dict[str, object]] = {
        "schema_version": {"version": 1, "applied_at": now},
        "servers": {
            "id": "a#1", "name": "a", "hostname": "h", "host": "kernel/ns", "pid": 1, "started_ticks": 1,
            "worker_count": 1, "queues": '["default"]', "started_at": now, "last_heartbeat": now,
            "heartbeat_enabled": 1 if raw.is_sqlite else True,
        },
        "workers": {
            "id": "w-1", "server_id": "a#1", "number": 1, "host": "kernel/ns", "pid": 2, "started_ticks": 1,
            "started_at": now,
        },
        "recurring_jobs": {
            "id": "digest", "cron": "0 9 * * *", "tz": "UTC", "method": "work", "payload": "null",
            "queue": "default", "created_at": now,
        },
        "locks": {"resource": "r", "owner": "o", "expires_at": now},
    }  # fmt: skip
    for table, row in rows.items():
        places = ", ".join("?" * len(row))
        raw.run(f"INSERT INTO {{{table}}} ({', '.join(row)}) VALUES ({places})", *row.values())
    raw.add_job(id=JOB)
    raw.add_job(id=LONG, method=LONG_METHOD, queue="long")
    raw.add_job(
        id=CLAIMED,
        state="processing",
        claim_seq=2,
        worker_id="w-1",
        server_id="a#1",
        started_at=now,
        failures=1,
    )
    raw.run(
        "INSERT INTO {attempts} (job_id, claim_seq, kind, worker, started_at, ended_at) "
        "VALUES (?, 1, 'failure', 'w-0', ?, ?)",
        CLAIMED, now, now,
    )  # fmt: skip


def missing(raw: Raw) -> list[int]:
    """What version 1 lacks."""
    migrations = sqlite_schema.MIGRATIONS if raw.is_sqlite else postgres_migrations.MIGRATIONS
    return list(range(2, latest_version(migrations) + 1))


def rows_of(raw: Raw) -> dict[str, list[tuple[Any, ...]]]:
    return {table: sorted(raw.run(f"SELECT * FROM {{{table}}}"), key=str) for table in OLD}


def assert_version_1(storage: Storage, raw: Raw, before: dict[str, list[tuple[Any, ...]]]) -> None:
    """Nothing of a later version is there, and this code refuses to work on it."""
    assert storage.schema_version() == 1
    assert rows_of(raw) == before  # to the number of their columns
    with pytest.raises(SchemaMismatch, match="qml-mp migrate"):
        storage.claims()


def assert_migrated(storage: Storage, raw: Raw, before: dict[str, list[tuple[Any, ...]]]) -> None:
    """All rows are as they were, and what was going on goes on."""
    storage.check_schema()
    after = rows_of(raw)
    for table, rows in before.items():
        assert [row[: len(rows[0])] for row in after[table]] == rows, table
    (server,), (worker,), (claim,) = storage.list_servers(), storage.list_workers(), storage.claims()
    assert (server.id, server.methods, server.paused, server.trouble) == ("a#1", None, False, None)
    assert (server.answers, server.acts) == (NO_ANSWERS, ())
    assert (worker.id, worker.epoch, claim.worker_id, claim.job.claim_seq) == ("w-1", 0, "w-1", 2)
    assert len(storage.attempts(CLAIMED)) == 1
    asks = replace(fetch("default", worker="w-1", server="a#1"), registered=True, methods=("work",))
    finished, next_claim = finish_and_fetch(storage, claim, DONE, asks)
    assert finished.accepted
    assert next_claim is not None
    assert next_claim.job.id == JOB
    assert storage.finish(next_claim, Release(reason="r"), retention=KEEP).state is StateName.ENQUEUED
    assert storage.fetch_and_lock_job(fetch("long")) is not None


def test_a_database_in_use_keeps_its_jobs_claims_and_servers(storage: Storage, raw: Raw) -> None:
    before = rows_of(raw)
    assert_version_1(storage, raw, before)

    assert storage.migrate() == missing(raw)

    assert storage.migrate() == []
    assert_migrated(storage, raw, before)


def test_a_migration_that_fails_half_way_leaves_the_old_version(storage: Storage, raw: Raw) -> None:
    raw.run("ALTER TABLE {workers} ADD COLUMN epoch integer")  # in the way of the last of its columns
    before = rows_of(raw)

    with pytest.raises(StorageError):
        storage.migrate()

    assert_version_1(storage, raw, before)
    raw.run("ALTER TABLE {workers} DROP COLUMN epoch")
    before = rows_of(raw)
    assert storage.migrate() == missing(raw)
    assert_migrated(storage, raw, before)


class KilledAtTheEnd(SystemClock):
    """SQLite's migration asks for the time when all of its statements have run."""

    def now(self) -> datetime:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it is dead")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_migration_that_is_killed_inside_leaves_the_old_version_on_sqlite(
    url: str, storage: Storage, raw: Raw
) -> None:
    before = rows_of(raw)

    statuses = in_children([lambda: open_storage(url, clock=KilledAtTheEnd()).migrate()])

    assert [os.WTERMSIG(status) for status in statuses] == [signal.SIGKILL]
    assert_version_1(storage, raw, before)
    assert storage.migrate() == missing(raw)
    assert_migrated(storage, raw, before)


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.parametrize("end", ["the client", "its session"])
def test_a_migration_that_is_killed_inside_leaves_the_old_version_on_postgres(
    url: str, storage: Storage, raw: Raw, connect: Callable[[], Any], end: str
) -> None:
    before = rows_of(raw)
    with connect() as other:
        other.execute(f"LOCK TABLE {raw.name('workers')} IN ACCESS SHARE MODE")
        pid = os.fork()
        if pid == 0:
            try:
                open_patiently(url, application_name="migrator").migrate()
            finally:
                os._exit(7)
        session = waiting_session(raw)
        if end == "the client":
            os.kill(pid, signal.SIGKILL)
        else:
            raw.run("SELECT pg_terminate_backend(?, 10000)", session)
        _, status = os.waitpid(pid, 0)

    assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if end == "the client" else 7)
    assert_version_1(storage, raw, before)
    # Waits for the session of the killed one, which ends once it notices.
    assert storage.migrate() == missing(raw)
    assert_migrated(storage, raw, before)


def waiting_session(raw: Raw) -> int:
    """The server process in which the migration waits, some of its statements done."""
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'migrator' AND wait_event_type = 'Lock'"
    )
    ((pid,),) = wait_until(lambda: raw.run(waiting), what="a migration that waits")
    return int(pid)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_migration_that_is_killed_before_or_after_its_transaction_is_not_done_or_done(
    url: str, storage: Storage, raw: Raw, when: str
) -> None:
    before = rows_of(raw)

    def killed() -> None:
        with closing(open_patiently(url)) as mine:
            if when == "after":
                mine.migrate()
            else:
                assert mine.schema_version() == 1  # connected, and nothing sent yet
            os.kill(os.getpid(), signal.SIGKILL)

    statuses = in_children([killed])

    assert [os.WTERMSIG(status) for status in statuses] == [signal.SIGKILL]
    if when == "before":
        assert_version_1(storage, raw, before)
    assert storage.migrate() == (missing(raw) if when == "before" else [])
    assert_migrated(storage, raw, before)


@pytest.mark.fault(48)
def test_of_five_that_migrate_at_once_one_does_it(
    url: str, storage: Storage, raw: Raw, tmp_path: Path
) -> None:
    before = rows_of(raw)

    def start(number: int) -> None:
        (tmp_path / f"applied-{number}").write_text(repr(open_patiently(url).migrate()))

    actions: list[Callable[[], None]] = [partial(start, number) for number in range(5)]
    statuses = in_children(actions)

    assert statuses == [0] * 5
    applied = [(tmp_path / f"applied-{number}").read_text() for number in range(5)]
    assert sorted(applied) == sorted([repr(missing(raw)), *["[]"] * 4])
    assert raw.run("SELECT version FROM {schema_version} ORDER BY version") == [
        (1,),
        *((n,) for n in missing(raw)),
    ]
    assert_migrated(storage, raw, before)
