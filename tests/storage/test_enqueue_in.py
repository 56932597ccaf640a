"""Tests of the storage: enqueueing inside the caller's own transaction."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from qml_mp.core.job import Job
from qml_mp.errors import ConfigurationError, SchemaMismatch
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.conftest import server_of
from tests.storage.helpers import fetch

Connect = Callable[[], Any]


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

    with closing(foreign), pytest.raises(ConfigurationError):
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


def test_an_sqlite_connection_may_shape_its_rows_as_it_likes(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    first = storage.enqueue(Job.new("work", unique_key="k"))
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.text_factory = bytes
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
