"""Client: the caller's own connection, looked at before our rows go into the caller's transaction."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from qml_mp.errors import ConfigurationError, SchemaMismatch, shown_type
from qml_mp.storage.sqlite.connection import SqliteConnection
from qml_mp.storage.sqlite.errors import is_busy
from qml_mp.storage.sqlite.opening import check_log_has_its_file, roll_back_to
from qml_mp.storage.sqlite.schema import HAS_VERSIONS, TAKE_WRITE_LOCK, VERSION

_T = TypeVar("_T")


def checked(connection: object, own: SqliteConnection) -> sqlite3.Connection:
    """The connection, or `ConfigurationError` when our rows cannot go into its transaction."""
    if not isinstance(connection, sqlite3.Connection):
        raise ConfigurationError(
            f"The connection is a {shown_type(connection)}; this app's storage is {own.where()}, "
            "so it must be a sqlite3.Connection to that file."
        )
    try:
        cursor = connection.cursor()
        cursor.row_factory = None
        rows = cursor.execute("PRAGMA database_list").fetchall()
        names = [_fsdecoded(row[2]) for row in rows if _fsdecoded(row[1]) == "main"]
    except sqlite3.Error as error:
        raise ConfigurationError(f"The connection cannot be used: {error}") from error
    if not names or not _is_same_file(names[0], own.path):
        raise ConfigurationError(
            f"The connection belongs to {''.join(names) or 'a database without a file'}; "
            f"this app's storage is {own.where()}. Use a connection to that file."
        )
    check_log_has_its_file(own.path)  # the connection has made an empty one, perhaps, and read nothing yet
    if not connection.in_transaction and _commits_by_itself(connection):
        raise ConfigurationError(
            "The connection has no open transaction and commits each statement by itself; "
            "execute BEGIN before enqueueing in it."
        )
    return connection


def take_write_lock(cursor: sqlite3.Cursor) -> None:
    """Take it in the caller's open transaction, before anything of ours is read there.

    SQLite waits for other writers, as long as the connection's `timeout` says, only in a transaction that has
    read nothing yet. One that has is refused at once, and for good when another has committed since. Without
    a transaction nothing is done: the driver begins one with the first row.
    """
    if cursor.connection.in_transaction:
        try:
            cursor.execute(TAKE_WRITE_LOCK)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:  # no such table: told by who looks for it
                raise


def check_schema_through(cursor: sqlite3.Cursor, own: SqliteConnection) -> None:
    """Raise `SchemaMismatch` unless the caller's transaction sees our schema; made when there is none."""
    if not cursor.execute(HAS_VERSIONS).fetchone()[0]:
        if cursor.connection.in_transaction:
            raise SchemaMismatch(
                f"The open transaction sees no schema of qml-mp in {own.where()}. "
                "Run `qml-mp migrate` once (or app.storage.migrate()), before the transaction begins."
            )
        own.schema_version()  # raises where it was there, and is gone
        own.migrate()
    own.check_found(cursor.execute(VERSION).fetchone()[0] or 0)


def all_or_nothing(cursor: sqlite3.Cursor, write: Callable[[], _T]) -> _T:
    """Have the caller's transaction hold all that is written or, on any error, be as it was before.

    In a plain frame: the clean-up of a generator may be put off until the caller has gone on.
    """
    connection = cursor.connection
    had_transaction = connection.in_transaction  # else the driver begins one with the first row
    try:
        has_mark = had_transaction and _could_mark(cursor)
        written = write()
        if has_mark:
            cursor.execute("RELEASE qml_mp")
    except BaseException:
        with suppress(sqlite3.Error):  # the error that led here is the one to tell
            cursor.close()
            if had_transaction:
                roll_back_to(connection, "qml_mp")
            else:
                connection.rollback()
        raise
    return written


def _could_mark(cursor: sqlite3.Cursor) -> bool:
    """Whether there is a savepoint now. SQLite makes none while a statement that writes still gives rows, as
    an INSERT with RETURNING in whose rows the caller enqueues one job each."""
    try:
        cursor.execute("SAVEPOINT qml_mp")
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        return False
    return True


def _fsdecoded(text: object) -> str:
    """Of what the caller's text_factory makes of a text."""
    match text:
        case str():
            return text
        case bytes() | bytearray() | memoryview():
            return os.fsdecode(bytes(text))
        case _:
            return ""


def _is_same_file(path: str, own: str) -> bool:
    try:
        return bool(path) and os.path.samefile(path, own)
    except OSError:
        return False


def _commits_by_itself(connection: sqlite3.Connection) -> bool:
    # Python 3.12 added `autocommit`; its default, -1, leaves it to `isolation_level` as before.
    autocommit = getattr(connection, "autocommit", -1)
    return autocommit is True or (autocommit is not False and connection.isolation_level is None)
