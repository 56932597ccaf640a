"""Tests of the storage: from an older version to this one, with a database in use, whatever interrupts it."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
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


@dataclass(frozen=True, kw_only=True)
class Old:
    """A version from which is migrated."""

    version: int
    lacks: tuple[str, ...]
    """The tables that it has not yet."""
    obstacle: str
    """What is in the way of one of the last statements of a newer version."""
    removal: str
    locked: tuple[str, str]
    """A table, and the mode in which it is locked on PostgreSQL so that one of these statements waits."""


FIRST = Old(
    version=1,
    lacks=("limits", "counters", "acts", "history", "failure_callbacks", "lost_attempts"),
    obstacle="ALTER TABLE {workers} ADD COLUMN epoch integer",
    removal="ALTER TABLE {workers} DROP COLUMN epoch",
    locked=("workers", "ACCESS SHARE"),
)
SIXTH = Old(
    version=6,
    lacks=(),
    obstacle="ALTER TABLE {recurring_jobs} ADD COLUMN priority integer",
    removal="ALTER TABLE {recurring_jobs} DROP COLUMN priority",
    locked=("recurring_jobs", "ACCESS SHARE"),
)


@pytest.fixture(params=[FIRST, SIXTH], ids=["from version 1", "from version 6"])
def old(request: pytest.FixtureRequest) -> Old:
    """What the storage under test is at first."""
    param: Old = request.param
    return param


@pytest.fixture
def storage(opened: Callable[[], Storage]) -> Storage:
    """The storage under test, which is as `raw` makes it."""
    return opened()


@pytest.fixture
def raw(url: str, connect: Callable[[], Any], old: Old) -> Raw:
    """The tables of a database of the old version, with something in each of them."""
    with closing(connect()) as connection:
        if url.startswith("sqlite"):
            connection.execute("PRAGMA journal_mode = WAL")
            for migration in sqlite_schema.MIGRATIONS[: old.version]:
                for statement in migration.sql.split(";\n"):
                    connection.execute(statement)
        else:
            schema = f'"{url.rpartition("schema=")[2]}"'
            connection.execute(f"CREATE SCHEMA {schema}")
            connection.execute(
                f"CREATE TABLE {schema}.schema_version (version integer PRIMARY KEY, "
                "applied_at timestamptz NOT NULL DEFAULT now())"
            )
            for migration in postgres_migrations.MIGRATIONS[: old.version]:
                connection.execute(migration.sql.format(s=schema))
        connection.commit()
    raw = raw_tables(url, connect)
    fill(raw, old)
    return raw


def fill(raw: Raw, old: Old) -> None:
    """As a server of that version leaves it in the middle of its work."""
    now = raw.instant(datetime.now(UTC))
    long_ago = raw.instant(datetime.now(UTC) - timedelta(days=2))
    for version in range(1, old.version + 1):
        raw.run("INSERT INTO {schema_version} (version, applied_at) VALUES (?, ?)", version, now)
    rows: dict[str, dict[str, object]] = {
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
        "locks": {"resource": "r", "owner": "o", "expires_at": long_ago},
        "limits": {"kind": "queue", "name": "elsewhere", "max_running": 1},
        "counters": {"name": "lock", "value": 3},
        "acts": {
            "id": "a-1", "what": "pause queue", "subject": "images", "asked_by": "anna", "asked_from": "web",
            "asked_at": now, "state": "done",
        },
        "history": {
            "step_s": 60, "begins_at": long_ago, "writer": "a#1", "claims": 1, "totals": "{}", "queues": "{}",
            "methods": "{}",
        },
        "failure_callbacks": {"job_id": CLAIMED, "claim_seq": 1, "method": "work", "due_at": now},
        "lost_attempts": {
            "job_id": CLAIMED, "claim_seq": 1, "method": "work", "facts": "{}", "ended_at": long_ago,
            "due_at": long_ago,
        },
    }  # fmt: skip
    for table, row in rows.items():
        if table in old.lacks:
            continue
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


def missing(raw: Raw, old: Old) -> list[int]:
    """What the old version lacks."""
    migrations = sqlite_schema.MIGRATIONS if raw.is_sqlite else postgres_migrations.MIGRATIONS
    return list(range(old.version + 1, latest_version(migrations) + 1))


def rows_of(raw: Raw, old: Old) -> dict[str, list[tuple[Any, ...]]]:
    tables = [table for table in TABLES if table not in ("schema_version", *old.lacks)]
    return {table: sorted(raw.run(f"SELECT * FROM {{{table}}}"), key=str) for table in tables}


def assert_old(storage: Storage, raw: Raw, old: Old, before: dict[str, list[tuple[Any, ...]]]) -> None:
    """Nothing of a later version is there, and this code refuses to work on it."""
    assert storage.schema_version() == old.version
    assert rows_of(raw, old) == before  # to the number of their columns
    assert not {"locks_expiry", "qml_locks_expiring"} & indexes(raw)
    with pytest.raises(SchemaMismatch, match="qml-mp migrate"):
        storage.claims()


def indexes(raw: Raw) -> set[str]:
    """The names of all."""
    if raw.is_sqlite:
        return {name for (name,) in raw.run("SELECT name FROM sqlite_master WHERE type = 'index'")}
    schema = raw.name("jobs").partition(".")[0].strip('"')
    return {name for (name,) in raw.run("SELECT indexname FROM pg_indexes WHERE schemaname = ?", schema)}


def assert_migrated(storage: Storage, raw: Raw, old: Old, before: dict[str, list[tuple[Any, ...]]]) -> None:
    """All rows are as they were, and what was going on goes on."""
    storage.check_schema()
    after = rows_of(raw, old)
    for table, rows in before.items():
        assert [row[: len(rows[0])] for row in after[table]] == rows, table
    (server,), (worker,), (claim,) = storage.list_servers(), storage.list_workers(), storage.claims()
    assert (server.id, server.methods, server.paused, server.trouble) == ("a#1", None, False, None)
    assert (server.answers, server.acts) == (NO_ANSWERS, ())
    assert (worker.id, worker.epoch, claim.worker_id, claim.job.claim_seq) == ("w-1", 0, "w-1", 2)
    assert len(storage.attempts(CLAIMED)) == 1
    assert [each.priority for each in storage.list_recurring_jobs()] == [0]
    asks = replace(fetch("default", worker="w-1", server="a#1"), registered=True, methods=("work",))
    finished, next_claim = finish_and_fetch(storage, claim, DONE, asks)
    assert finished.accepted
    assert next_claim is not None
    assert next_claim.job.id == JOB
    assert storage.finish(next_claim, Release(reason="r"), retention=KEEP).state is StateName.ENQUEUED
    assert storage.fetch_and_lock_job(fetch("long")) is not None
    assert storage.delete_expired_locks(limit=10) == 1
    assert storage.forget_lost_attempts(limit=10) == ("lost_attempts" not in old.lacks)


def test_a_database_in_use_keeps_its_jobs_claims_and_servers(storage: Storage, raw: Raw, old: Old) -> None:
    before = rows_of(raw, old)
    assert_old(storage, raw, old, before)

    assert storage.migrate() == missing(raw, old)

    assert storage.migrate() == []
    assert_migrated(storage, raw, old, before)


def test_a_migration_that_fails_half_way_leaves_the_old_version(storage: Storage, raw: Raw, old: Old) -> None:
    raw.run(old.obstacle)
    before = rows_of(raw, old)

    with pytest.raises(StorageError):
        storage.migrate()

    assert_old(storage, raw, old, before)
    raw.run(old.removal)
    before = rows_of(raw, old)
    assert storage.migrate() == missing(raw, old)
    assert_migrated(storage, raw, old, before)


class KilledAtTheEnd(SystemClock):
    """SQLite's migration asks for the time when all of its statements have run."""

    def now(self) -> datetime:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("it is dead")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_migration_that_is_killed_inside_leaves_the_old_version_on_sqlite(
    url: str, storage: Storage, raw: Raw, old: Old
) -> None:
    before = rows_of(raw, old)

    statuses = in_children([lambda: open_storage(url, clock=KilledAtTheEnd()).migrate()])

    assert [os.WTERMSIG(status) for status in statuses] == [signal.SIGKILL]
    assert_old(storage, raw, old, before)
    assert storage.migrate() == missing(raw, old)
    assert_migrated(storage, raw, old, before)


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.parametrize("end", ["the client", "its session"])
def test_a_migration_that_is_killed_inside_leaves_the_old_version_on_postgres(
    url: str, storage: Storage, raw: Raw, old: Old, connect: Callable[[], Any], end: str
) -> None:
    before = rows_of(raw, old)
    with connect() as other:
        table, mode = old.locked
        other.execute(f"LOCK TABLE {raw.name(table)} IN {mode} MODE")
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
    assert_old(storage, raw, old, before)
    # Waits for the session of the killed one, which ends once it notices.
    assert storage.migrate() == missing(raw, old)
    assert_migrated(storage, raw, old, before)


def waiting_session(raw: Raw) -> int:
    """The server process in which the migration waits, some of its statements done."""
    waiting = (
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'migrator' AND wait_event_type = 'Lock'"
    )
    ((pid,),) = wait_until(lambda: raw.run(waiting), what="a migration that waits")
    return int(pid)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_migration_that_is_killed_before_or_after_its_transaction_is_not_done_or_done(
    url: str, storage: Storage, raw: Raw, old: Old, when: str
) -> None:
    before = rows_of(raw, old)

    def killed() -> None:
        with closing(open_patiently(url)) as mine:
            if when == "after":
                mine.migrate()
            else:
                assert mine.schema_version() == old.version  # connected, and nothing sent yet
            os.kill(os.getpid(), signal.SIGKILL)

    statuses = in_children([killed])

    assert [os.WTERMSIG(status) for status in statuses] == [signal.SIGKILL]
    if when == "before":
        assert_old(storage, raw, old, before)
    assert storage.migrate() == (missing(raw, old) if when == "before" else [])
    assert_migrated(storage, raw, old, before)


@pytest.mark.fault(48)
def test_of_five_that_migrate_at_once_one_does_it(
    url: str, storage: Storage, raw: Raw, old: Old, tmp_path: Path
) -> None:
    before = rows_of(raw, old)

    def start(number: int) -> None:
        (tmp_path / f"applied-{number}").write_text(repr(open_patiently(url).migrate()))

    actions: list[Callable[[], None]] = [partial(start, number) for number in range(5)]
    statuses = in_children(actions)

    assert statuses == [0] * 5
    applied = [(tmp_path / f"applied-{number}").read_text() for number in range(5)]
    assert sorted(applied) == sorted([repr(missing(raw, old)), *["[]"] * 4])
    latest = missing(raw, old)[-1]
    versions = raw.run("SELECT version FROM {schema_version} ORDER BY version")
    assert versions == [(number,) for number in range(1, latest + 1)]
    assert_migrated(storage, raw, old, before)
