"""Tests of the storage: enqueueing inside the caller's own transaction."""

from __future__ import annotations

import sqlite3
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, SchemaMismatch, StorageError, StorageUnavailable
from qml_mp.storage import unique
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw, server_of
from tests.storage.helpers import fetch

Connect = Callable[[], Any]

TWO_STATEMENTS = 210  # more than one INSERT holds
# How a connection may treat transactions, what of it begins one, and whether one is open before the call.
WAYS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({}, "BEGIN"),
    ({"isolation_level": ""}, None),
    ({"isolation_level": "IMMEDIATE"}, None),
    ({"isolation_level": "EXCLUSIVE"}, "BEGIN"),
    ({"isolation_level": None}, "BEGIN"),
    ({"isolation_level": None}, "SAVEPOINT theirs"),
]
if sys.version_info >= (3, 12):
    WAYS += [({"autocommit": False}, None), ({"autocommit": True}, "BEGIN")]


def test_a_job_enqueued_in_a_transaction_appears_with_its_commit(storage: Storage, connect: Connect) -> None:
    connection = connect()

    [job_id] = storage.enqueue_in(connection, [Job.new("work")])
    before = storage.get(job_id)
    connection.commit()

    assert before is None
    assert storage.get(job_id) is not None


def test_a_job_enqueued_in_a_transaction_goes_with_its_rollback(storage: Storage, connect: Connect) -> None:
    connection = connect()

    ids = storage.enqueue_in(connection, [Job.new("work"), Job.new("work")])
    connection.rollback()

    assert [storage.get(job_id) for job_id in ids] == [None, None]


def test_the_callers_rows_and_the_job_are_committed_together(storage: Storage, connect: Connect) -> None:
    storage.migrate()
    connection = connect()
    table = f"orders_{uuid.uuid4().hex}"
    connection.execute(f"CREATE TABLE {table} (n INTEGER)")
    connection.commit()

    connection.execute("BEGIN") if isinstance(connection, sqlite3.Connection) else None
    connection.execute(f"INSERT INTO {table} VALUES (1)")
    [job_id] = storage.enqueue_in(connection, [Job.new("work")])
    connection.rollback()

    assert connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0
    assert storage.get(job_id) is None
    connection.execute(f"DROP TABLE {table}")
    connection.commit()


def test_a_live_unique_key_holds_inside_a_transaction_too(storage: Storage, connect: Connect) -> None:
    first = storage.enqueue(Job.new("work", unique_key="k"))
    connection = connect()

    ids = storage.enqueue_in(connection, [Job.new("work", unique_key="k"), Job.new("work")])
    connection.commit()

    assert ids[0] == first
    assert sum(storage.job_counts().values()) == 2


def test_a_key_is_held_for_its_period_however_old_the_transaction_is(
    storage: Storage, raw: Raw, connect: Connect
) -> None:
    connection = connect()
    connection.execute("SELECT 1" if not raw.is_sqlite else "BEGIN")
    time.sleep(0.01)  # what it began at is past by the database's clock, which no test can set
    called_at = storage.now()

    storage.enqueue_in(connection, [Job.new("work", unique_key="k", unique_for=timedelta(hours=1))])
    connection.commit()

    [(expires_at,)] = raw.run("SELECT expires_at FROM {locks}")
    if raw.is_sqlite:
        expires_at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=expires_at)
    assert expires_at >= called_at + timedelta(hours=1)


@pytest.mark.parametrize("connection", [None, object(), "sqlite:///jobs.db"])
def test_what_is_no_connection_is_refused(storage: Storage, connection: object) -> None:
    with pytest.raises(ConfigurationError, match="onnection"):
        storage.enqueue_in(connection, [Job.new("work")])


def test_a_connection_of_another_driver_is_refused(storage: Storage, url: str, request: Any) -> None:
    foreign: Any
    if url.startswith("sqlite"):
        foreign = psycopg.connect(request.getfixturevalue("postgres_url"))
    else:
        foreign = sqlite3.connect(":memory:")

    named = "psycopg.Connection" if url.startswith("sqlite") else "sqlite3.Connection"
    with closing(foreign), pytest.raises(ConfigurationError, match=f"The connection is a {named};"):
        storage.enqueue_in(foreign, [Job.new("work")])


def test_a_connection_to_another_database_is_refused_and_left_alone(
    storage: Storage, url: str, connect: Connect, tmp_path: Path
) -> None:
    storage.migrate()
    other: Any
    if url.startswith("sqlite"):
        open_storage(f"sqlite:///{tmp_path}/other.db").migrate()
        other = sqlite3.connect(tmp_path / "other.db")
    else:
        name = f"other_{uuid.uuid4().hex}"
        admin = connect()
        admin.autocommit = True
        admin.execute(f'CREATE DATABASE "{name}"')
        other = psycopg.connect(make_conninfo(server_of(url), dbname=name))

    with closing(other), pytest.raises(ConfigurationError, match="other"):
        storage.enqueue_in(other, [Job.new("work")])

    if not url.startswith("sqlite"):
        admin.execute(f'DROP DATABASE "{name}"')
    assert sum(storage.job_counts().values()) == 0


def test_an_sqlite_connection_without_a_transaction_is_refused(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as connection:
        with pytest.raises(ConfigurationError, match="BEGIN"):
            storage.enqueue_in(connection, [Job.new("work")])

        connection.execute("BEGIN")
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])
        connection.execute("COMMIT")

    assert storage.get(job_id) is not None


@pytest.mark.parametrize("text_factory", [bytes, bytearray, memoryview, lambda raw: raw.decode("latin-1")])
def test_an_sqlite_connection_may_shape_its_rows_as_it_likes(
    tmp_path: Path, text_factory: Callable[[bytes], object]
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    first = storage.enqueue(Job.new("work", unique_key="k"))
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.text_factory = text_factory
        connection.row_factory = lambda _cursor, row: {"shaped": row}

        ids = storage.enqueue_in(connection, [Job.new("work", unique_key="k")])

    assert ids == [first]


def test_a_connection_that_reads_text_as_bytes_is_told_of_the_job_that_runs(
    storage: Storage, url: str, connect: Connect
) -> None:
    first = storage.enqueue(Job.new("work", unique_key="k"))
    assert storage.fetch_and_lock_job(fetch()) is not None
    connection = connect()
    if url.startswith("sqlite"):
        connection.text_factory = bytes
    else:
        connection.execute("SET client_encoding TO 'SQL_ASCII'")

    ids = storage.enqueue_in(connection, [Job.new("work", unique_key="k", on_conflict="replace")])

    assert ids == [first]


def test_an_open_sqlite_transaction_that_sees_no_schema_says_what_to_do(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("BEGIN IMMEDIATE")

        with pytest.raises(SchemaMismatch, match="qml-mp migrate"):
            storage.enqueue_in(connection, [Job.new("work")])


def test_an_sqlite_connection_to_a_symbolic_link_is_to_the_same_file(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    (tmp_path / "link.db").symlink_to(tmp_path / "jobs.db")
    with closing(sqlite3.connect(tmp_path / "link.db")) as connection, connection:
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])

    assert storage.get(job_id) is not None


@pytest.fixture
def refusing(storage: Storage, raw: Raw) -> Storage:
    """A storage that stores no job of the method "no"."""
    if raw.is_sqlite:
        raw.run(
            "CREATE TRIGGER no BEFORE INSERT ON {jobs} WHEN NEW.method = 'no' "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    else:
        raw.run("ALTER TABLE {jobs} ADD CONSTRAINT no CHECK (method <> 'no')")
    return storage


@pytest.fixture
def orders(connect: Connect) -> Iterator[str]:
    """A table of the caller's."""
    table, connection = f"orders_{uuid.uuid4().hex}", connect()
    connection.execute(f"CREATE TABLE {table} (n INTEGER)")
    connection.commit()
    yield table
    connection.execute(f"DROP TABLE {table}")
    connection.commit()


def refused_jobs() -> list[Job]:
    return [*(Job.new("work") for _ in range(TWO_STATEMENTS)), Job.new("no")]


def rows_of(connection: Any, table: str) -> int:
    """As they are committed; the connection locks nothing then."""
    count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    connection.rollback()
    return count


def commit(connection: sqlite3.Connection, *, begin: str | None) -> None:
    connection.commit()
    if begin is not None and connection.in_transaction:  # autocommit=True has no commit of its own
        connection.execute("COMMIT")


def in_savepoint(connection: Any) -> Any:
    """What PostgreSQL needs so that an error does not abort the whole transaction; SQLite needs nothing."""
    return nullcontext() if isinstance(connection, sqlite3.Connection) else connection.transaction()


def test_a_refused_job_leaves_none_of_its_call_in_the_transaction_and_all_that_was_there(
    refusing: Storage, connect: Connect, orders: str
) -> None:
    connection = connect()
    connection.execute(f"INSERT INTO {orders} VALUES (1)")
    [before] = refusing.enqueue_in(connection, [Job.new("work")])

    with pytest.raises(StorageError), in_savepoint(connection):
        refusing.enqueue_in(connection, refused_jobs())
    [after] = refusing.enqueue_in(connection, [Job.new("work")])
    connection.commit()

    assert rows_of(connection, orders) == 1
    assert refusing.get(before) is not None
    assert refusing.get(after) is not None
    assert sum(refusing.job_counts().values()) == 2


def test_a_call_that_is_interrupted_leaves_none_of_its_jobs_in_the_transaction(
    storage: Storage, connect: Connect, orders: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.enqueue(Job.new("work", unique_key="k"))
    connection = connect()
    connection.execute(f"INSERT INTO {orders} VALUES (1)")
    jobs = [Job.new("work", unique_key="k", on_conflict="replace"), Job.new("work")]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(unique, "_free_unused", interrupt)  # all rows are written by then
        with pytest.raises(KeyboardInterrupt), in_savepoint(connection):
            storage.enqueue_in(connection, jobs)
    connection.commit()

    assert rows_of(connection, orders) == 1
    assert {state: n for state, n in storage.job_counts().items() if n} == {StateName.ENQUEUED: 1}


@pytest.mark.parametrize(("options", "begin"), WAYS)
def test_an_sqlite_transaction_is_what_it_was_after_an_error_however_the_connection_treats_it(
    tmp_path: Path, options: dict[str, Any], begin: str | None
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as admin, admin:
        admin.execute("CREATE TABLE orders (n INTEGER)")
        admin.execute(
            "CREATE TRIGGER no BEFORE INSERT ON qml_jobs WHEN NEW.method = 'no' "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    with closing(sqlite3.connect(tmp_path / "jobs.db", **options)) as connection:
        connection.row_factory, connection.text_factory = sqlite3.Row, bytes
        if begin is not None:
            connection.execute(begin)
        was_open = connection.in_transaction

        with pytest.raises(StorageError):
            storage.enqueue_in(connection, refused_jobs())
        after_error = connection.in_transaction
        if was_open:
            connection.execute("INSERT INTO orders VALUES (1)")
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])
        commit(connection, begin=begin)

    assert after_error is was_open
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as other:
        assert rows_of(other, "orders") == was_open
    assert storage.get(job_id) is not None
    assert sum(storage.job_counts().values()) == 1


@pytest.mark.parametrize(("options", "begin"), WAYS)
def test_an_sqlite_transaction_that_met_a_lock_goes_on_once_it_is_let_go(
    tmp_path: Path, options: dict[str, Any], begin: str | None
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    with (
        closing(sqlite3.connect(tmp_path / "jobs.db", timeout=0, **options)) as connection,
        closing(sqlite3.connect(tmp_path / "jobs.db")) as other,
    ):
        if begin is not None:
            connection.execute(begin)
        other.execute("CREATE TABLE orders (n INTEGER)")
        other.execute("INSERT INTO orders VALUES (1)")

        with pytest.raises(StorageUnavailable):
            storage.enqueue_in(connection, [Job.new("work")])
        other.commit()
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])
        commit(connection, begin=begin)

    assert storage.get(job_id) is not None


@pytest.mark.parametrize(("options", "begin"), WAYS)
def test_an_sqlite_transaction_takes_the_lock_before_it_reads_what_others_may_change(
    tmp_path: Path, options: dict[str, Any], begin: str | None
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    with (
        closing(sqlite3.connect(tmp_path / "jobs.db", **options)) as connection,
        closing(sqlite3.connect(tmp_path / "jobs.db")) as other,
    ):
        if begin is not None:
            connection.execute(begin)
        other.execute("CREATE TABLE orders (n INTEGER)")
        other.execute("INSERT INTO orders VALUES (1)")

        def commit_before_the_first_write(statement: str) -> None:
            if not statement.startswith(("SELECT", "PRAGMA")):
                other.commit()

        connection.set_trace_callback(commit_before_the_first_write)
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])
        commit(connection, begin=begin)

    assert storage.get(job_id) is not None


def test_an_sqlite_transaction_that_has_read_what_another_has_changed_is_told_to_begin_anew(
    tmp_path: Path,
) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM qml_jobs").fetchone()
        storage.enqueue(Job.new("work"))

        with pytest.raises(StorageUnavailable, match=r"has changed since .* BEGIN IMMEDIATE"):
            storage.enqueue_in(connection, [Job.new("work")])


def test_a_transaction_that_sqlite_itself_rolls_back_is_over_and_the_error_says_why(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE INSERT ON qml_jobs WHEN NEW.method = 'no' "
            "BEGIN SELECT RAISE(ROLLBACK, 'not this one'); END"
        )
        connection.execute("BEGIN")

        with pytest.raises(StorageError, match="not this one"):
            storage.enqueue_in(connection, refused_jobs())

        assert not connection.in_transaction
    assert sum(storage.job_counts().values()) == 0


def test_a_job_for_each_row_that_an_insert_returns(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("CREATE TABLE orders (n INTEGER)")

        for _ in connection.execute("INSERT INTO orders VALUES (1), (2), (3) RETURNING n"):
            storage.enqueue_in(connection, [Job.new("work")])
        connection.commit()

    assert sum(storage.job_counts().values()) == 3
