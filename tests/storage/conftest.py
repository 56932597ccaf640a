"""Tests of the storage: every test that asks for `storage` runs on both backends."""

from __future__ import annotations

import os
import sqlite3
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres import link
from qml_mp.storage.store import Storage
from tests import failpoints
from tests.migrated_copies import MigratedCopies
from tests.postgres_cluster import remove_schema
from tests.storage.helpers import in_schema, patient_url
from tests.until import PATIENCE_S

TABLES = (
    "jobs",
    "attempts",
    "recurring_jobs",
    "servers",
    "workers",
    "locks",
    "limits",
    "counters",
    "failure_callbacks",
    "lost_attempts",
    "acts",
    "history",
    "schema_version",
)


class Raw:
    """The tables behind a storage's back, through the plain driver; `{jobs}` names a table, `?` a value.

    A connection to an SQLite file is closed before each fork: a child beside it may not use the file.
    """

    def __init__(self, connect: Callable[[], Any], tables: dict[str, str], *, is_sqlite: bool) -> None:
        self.is_sqlite = is_sqlite
        self._connect = connect
        self._connection = connect()
        self._tables = tables
        if is_sqlite:
            _ON_SQLITE.add(self)

    def run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Execute and commit one statement; its rows."""
        text = statement.format(**self._tables)
        if self._connection is None:
            self._connection = self._connect()
        cursor = self._connection.execute(text if self.is_sqlite else text.replace("?", "%s"), values)
        return [tuple(row) for row in cursor.fetchall()] if cursor.description else []

    def close(self) -> None:
        """Until the next statement."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def name(self, table: str) -> str:
        """The table as SQL names it."""
        return self._tables[table]

    def instant(self, value: datetime) -> object:
        """An instant as the backend's columns hold it."""
        return int(value.timestamp()) * 1_000_000 if self.is_sqlite else value

    def age(self, table: str, column: str, by: timedelta) -> None:
        """Move a column's instants into the past, which for the storage is as if time had passed."""
        step = by // timedelta(microseconds=1) if self.is_sqlite else by
        self.run(f"UPDATE {{{table}}} SET {column} = {column} - ?", step)

    def add_job(self, **columns: object) -> str:
        """Insert a row as another program might; the job's id."""
        now = self.instant(datetime.now(UTC))
        row: dict[str, object] = {
            "id": str(uuid.uuid4()), "method": "work", "queue": "default", "priority": 0, "state": "enqueued",
            "payload": "null", "metadata": "{}", "max_retries": 0, "created_at": now, "enqueued_at": now,
            "claim_seq": 0, "failures": 0, "crashes": 0,
        } | columns  # fmt: skip
        places = ", ".join("?" * len(row))
        self.run(f"INSERT INTO {{jobs}} ({', '.join(row)}) VALUES ({places})", *row.values())
        return str(row["id"])


_ON_SQLITE: weakref.WeakSet[Raw] = weakref.WeakSet()


def _close_all() -> None:
    for raw in list(_ON_SQLITE):
        raw.close()


os.register_at_fork(before=_close_all)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where the storage under test is; nothing is there yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
        return
    server = request.getfixturevalue("postgres_url")
    schema = f"t_{uuid.uuid4().hex}"
    yield in_schema(server, schema)
    remove_schema(server, schema)


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Storage]]:
    """Opens one more storage at the URL under test, as another process would."""
    with ExitStack() as stack:

        def open_another() -> Storage:
            return stack.enter_context(closing(open_storage(patient_url(url))))

        yield open_another


@pytest.fixture
def storage(url: str, migrated_copies: MigratedCopies, opened: Callable[[], Storage]) -> Iterator[Storage]:
    """The storage under test. It was migrated before, as that of most users."""
    migrated_copies.make(url)
    yield opened()
    migrated_copies.take_back(url)


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], Any]]:
    """Makes a driver connection to the database under test, as a user of the database has it."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(driver_connection(url)))


@pytest.fixture
def raw(url: str, storage: Storage, connect: Callable[[], Any]) -> Raw:
    """The tables of the storage under test."""
    storage.migrate()
    return raw_tables(url, connect)


def driver_connection(url: str) -> Any:
    """A connection of the plain driver to the database of a storage."""
    if url.startswith("sqlite"):
        return sqlite3.connect(url.removeprefix("sqlite:///"))
    return psycopg.connect(server_of(url))


def raw_tables(url: str, connect: Callable[[], Any]) -> Raw:
    """The tables of the storage, through connections that are theirs from now on."""
    is_sqlite = url.startswith("sqlite")

    def connect_for_statements() -> Any:
        connection = connect()
        if is_sqlite:
            connection.isolation_level = None
        else:
            connection.autocommit = True
        return connection

    prefix = "qml_" if is_sqlite else f'"{url.rpartition("schema=")[2]}".'
    tables = {table: prefix + table for table in TABLES}
    return Raw(connect_for_statements, tables, is_sqlite=is_sqlite)


def server_of(url: str) -> str:
    """The URL without the schema of the test."""
    return url.rpartition("schema=")[0].rstrip("?&")


@pytest.fixture(autouse=True)
def time_to_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `patient_url` gives it, also to what a test opens by another URL, and to the children that it forks.
    Whoever has its storage waited for (`wait_with`) has the limit of the product."""
    monkeypatch.setattr(link, "_LIBPQ", {**link._LIBPQ, "connect_timeout": int(PATIENCE_S)})


@pytest.fixture
def time_for_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks alone are given up soon: a statement may take as long as the machine needs."""
    monkeypatch.setattr("qml_mp.storage.postgres.link._WORK_MS", int(PATIENCE_S * 1000))


@pytest.fixture
def reset_failpoints() -> Iterator[None]:
    """For a test that arms them in this process."""
    yield
    failpoints.arm("")
