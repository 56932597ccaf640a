"""Tests of the storage: enqueueing inside the caller's own transaction, of a driver or of SQLAlchemy."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import make_conninfo
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from qml_mp.core.job import Job
from qml_mp.errors import ConfigurationError, StorageError, StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw, server_of

Connect = Callable[[], Any]

TWO_STATEMENTS = 210  # more than one INSERT holds
# How a connection may treat transactions, what of it begins one, and whether one is open before the call.
WAYS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
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


def test_a_job_for_each_row_that_an_insert_returns(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.migrate()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("CREATE TABLE orders (n INTEGER)")

        for _ in connection.execute("INSERT INTO orders VALUES (1), (2), (3) RETURNING n"):
            storage.enqueue_in(connection, [Job.new("work")])
        connection.commit()

    assert sum(storage.job_counts().values()) == 3


# Enqueueing inside a transaction of SQLAlchemy.


@pytest.fixture
def engine(storage: Storage, url: str) -> Iterator[sqlalchemy.Engine]:
    """Of the database that the storage is in."""
    storage.migrate()
    own = (
        url if url.startswith("sqlite") else server_of(url).replace("postgresql://", "postgresql+psycopg://")
    )
    engine = sqlalchemy.create_engine(own)
    yield engine
    engine.dispose()


def test_a_job_appears_with_the_commit_of_a_session(storage: Storage, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session:
        [job_id] = storage.enqueue_in(session, [Job.new("work")])
        before = storage.get(job_id)
        session.commit()

    assert before is None
    assert storage.get(job_id) is not None


def test_a_job_goes_with_the_rollback_of_a_session(storage: Storage, engine: sqlalchemy.Engine) -> None:
    with Session(engine) as session:
        session.execute(sqlalchemy.text("SELECT 1"))
        [job_id] = storage.enqueue_in(session, [Job.new("work")])
        session.rollback()

    assert storage.get(job_id) is None


def test_a_job_appears_with_the_commit_of_a_connection_that_has_done_nothing_else(
    storage: Storage, engine: sqlalchemy.Engine
) -> None:
    with engine.connect() as connection:
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])
        before = storage.get(job_id)
        connection.commit()

    assert before is None
    assert storage.get(job_id) is not None


def test_a_job_appears_with_the_commit_of_an_engines_raw_connection(
    storage: Storage, engine: sqlalchemy.Engine
) -> None:
    with closing(engine.raw_connection()) as connection:
        [job_id] = storage.enqueue_in(connection, [Job.new("work")])
        before = storage.get(job_id)
        connection.commit()

    assert before is None
    assert storage.get(job_id) is not None


def test_an_engine_and_an_asynchronous_session_are_refused(
    storage: Storage, engine: sqlalchemy.Engine
) -> None:
    session = AsyncSession()

    with pytest.raises(ConfigurationError, match="give its session or connection"):
        storage.enqueue_in(engine, [Job.new("work")])
    with pytest.raises(ConfigurationError, match="is an AsyncSession"):
        storage.enqueue_in(session, [Job.new("work")])

    asyncio.run(session.close())
