"""Every process: the port to an SQLite file."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, TypeVar

from qml_mp.clock import Clock
from qml_mp.errors import InvalidJob
from qml_mp.storage.database import NO_VALUES, RowsRefused, Transaction, Values
from qml_mp.storage.rows import Columns, Row
from qml_mp.storage.sqlite.connection import SqliteConnection
from qml_mp.storage.sqlite.each import run_each
from qml_mp.storage.sqlite.errors import refuses_rows, refuses_values, translated
from qml_mp.storage.sqlite.foreign import all_or_nothing, check_schema_through, checked, take_write_lock
from qml_mp.storage.sqlite.inherited import check_has_locks
from qml_mp.storage.sqlite.inserting import insert_jobs, insert_statement
from qml_mp.storage.sqlite.instants import from_us, to_us
from qml_mp.storage.sqlite.mounts import caveats_of
from qml_mp.storage.sqlite.opening import roll_back_to
from qml_mp.storage.sqlite.queries import QUERIES
from qml_mp.storage.sqlite.scratch import SqliteScratch
from qml_mp.storage.sqlite.users import is_writing, large_logs
from qml_mp.storage.sqlite.waker import AnyCommitWaker, open_waker
from qml_mp.storage.storable import NewRow, microseconds
from qml_mp.storage.waiting import EndedWaker, Waker

_T = TypeVar("_T")
_PLAIN = frozenset({str, int, float, bool, type(None)})


class SqliteDatabase:
    """`Database` in the file at `path`, made with mode 0600 when it is missing.

    `busy_timeout` bounds every wait for another program's lock; `StorageUnavailable` then.
    """

    has_one_writer = True
    sender = None
    is_on_one_machine = True
    """The locks of a file and its log work on one machine."""

    queries = QUERIES

    def __init__(self, path: str, *, clock: Clock, busy_timeout: timedelta) -> None:
        self.connection = SqliteConnection(path, clock=clock, busy_timeout=busy_timeout)
        self._clock = clock
        self._has_locks_in = 0
        """Which process was found to have locks."""

    def now(self) -> datetime:
        """That of this machine, as injected."""
        return self._clock.now()

    def instant(self, value: object) -> datetime | None:
        return from_us(value)

    def refuses_values(self, error: BaseException) -> bool:
        cause = error.__cause__
        return isinstance(error, InvalidJob) or (isinstance(cause, sqlite3.Error) and refuses_values(cause))

    def refuses_rows(self, error: BaseException) -> bool:
        cause = error.__cause__
        return isinstance(cause, sqlite3.Error) and refuses_rows(cause)

    def read(self, what: str, query: str, values: Values = NO_VALUES) -> Sequence[Row]:  # noqa: ARG002
        with self.connection.read() as connection:
            cursor = self.connection.cursor(connection)
            cursor.execute(query, _bound(values, now=self._clock.now()))
            return _named(_names(cursor), cursor)

    def write(self, what: str, query: str, values: Values = NO_VALUES) -> _Result:
        with self.transaction(what) as transaction:
            return transaction.run(query, values)

    def write_each(
        self, what: str, query: str, rows: Sequence[Values], values: Values = NO_VALUES
    ) -> _Result:
        with self.transaction(what) as transaction:
            return transaction.run_each(query, rows, values)

    def insert(self, what: str, row: NewRow) -> bool:  # noqa: ARG002
        return self.connection.write_once(*insert_statement([row], now=self._clock.now())) > 0

    @contextmanager
    def transaction(
        self,
        what: str,  # noqa: ARG002
        *,
        pipelined: bool = True,  # noqa: ARG002
        durable: bool = True,
        durable_reads: bool = False,
    ) -> Iterator[_Transaction]:
        with self.connection.write(durable=durable, durable_reads=durable_reads) as connection:
            cursor = self.connection.cursor(connection)
            yield _Transaction(cursor, now=self._clock.now(), is_ours=True)

    def borrow(self, connection: object, use: Callable[[Transaction], list[str]]) -> list[str]:
        theirs = checked(connection, self.connection)
        try:
            cursor = theirs.cursor()
            cursor.row_factory = None  # the caller's own would shape our rows
            take_write_lock(cursor)
            check_schema_through(cursor, self.connection)
            self._check_locks_once(cursor)
            transaction = _Transaction(cursor, now=self._clock.now(), is_ours=False)
            return all_or_nothing(cursor, lambda: use(transaction))
        except sqlite3.Error as error:
            raise translated(error, self.connection.path) from error

    def _check_locks_once(self, cursor: sqlite3.Cursor) -> None:
        """In each process, by a connection of the caller's: what has locks has them until it forks."""
        if self._has_locks_in != os.getpid():
            check_has_locks(cursor, self.connection.path)
            self._has_locks_in = os.getpid()

    def open_waker(self) -> Waker | None:
        return open_waker(self.connection)

    def commit_mark(self) -> str:
        with self.connection.read() as connection:
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            return f"{self.connection.opened} {self.connection.durable_commits} {version}"

    def open_ended_waker(self) -> EndedWaker | None:
        waker = open_waker(self.connection)
        return None if waker is None else AnyCommitWaker(waker)

    def make_scratch(self) -> SqliteScratch:
        return SqliteScratch(self.connection.path)

    def is_locked_by_this_process(self) -> bool:
        return is_writing(self.connection.path)

    @property
    def caveats(self) -> Iterator[str]:
        yield from caveats_of(self.connection.path)
        yield from large_logs(self.connection.path)


class _Result:
    """`Result` of a statement that has run."""

    def __init__(self, names: Sequence[str], tuples: Sequence[Columns], count: int, *, now: datetime) -> None:
        self._names = names
        self._tuples = tuples
        self._now = now
        self.count = count

    def rows(self) -> Sequence[Row]:
        return _named(self._names, self._tuples)

    def tuples(self) -> Sequence[Columns]:
        return self._tuples

    def first(self) -> Row | None:
        return next(iter(_named(self._names, self._tuples[:1])), None)

    @property
    def written_at(self) -> datetime | None:
        return self._now if self.count else None  # known here, and RETURNING would cost a tenth of a finish


class _Transaction:
    """`Transaction` on a cursor: ours, or the caller's."""

    def __init__(self, cursor: sqlite3.Cursor, *, now: datetime, is_ours: bool) -> None:
        self._cursor = cursor
        self._now = now
        self._is_ours = is_ours

    def run(self, query: str, values: Values = NO_VALUES) -> _Result:
        self._cursor.execute(query, _bound(values, now=self._now))
        names = _names(self._cursor)
        tuples = self._cursor.fetchall() if names else []
        # Of a statement with RETURNING the driver counts the rows only once they are read.
        count = len(tuples) if names else self._cursor.rowcount
        return _Result(names, tuples, count, now=self._now)

    def run_each(self, query: str, rows: Sequence[Values], values: Values = NO_VALUES) -> _Result:
        count = run_each(self._cursor, query, rows, _bound(values, now=self._now))
        return _Result((), (), count, now=self._now)

    def insert(self, rows: Sequence[NewRow]) -> Sequence[NewRow]:
        return insert_jobs(self._cursor, rows, now=self._now, is_ours=self._is_ours)

    def apart(self, write: Callable[[], _T]) -> _T:
        connection = self._cursor.connection
        self._cursor.execute("SAVEPOINT apart")
        try:
            written = write()
            self._cursor.execute("RELEASE apart")
        except sqlite3.Error as error:
            if not (refuses_rows(error) and connection.in_transaction):  # a trigger may have ended that
                raise
            roll_back_to(connection, "apart")
            raise RowsRefused(f"{error}.") from error
        return written

    def refusal_of(self, query: str, values: Values) -> str | None:
        self._cursor.execute("SAVEPOINT trial")
        try:
            self.run(query, values)
        except sqlite3.Error as error:
            if not refuses_values(error):
                raise
            return f"{error}."
        finally:
            roll_back_to(self._cursor.connection, "trial")
        return None


def _names(cursor: sqlite3.Cursor) -> list[str]:
    """Of the columns that the statement gives."""
    return [column[0] for column in cursor.description or ()]


def _named(names: Sequence[str], rows: Iterable[Columns]) -> list[dict[str, Any]]:
    """A `sqlite3.Row` looks for each name among all of them, a dict does not."""
    return [dict(zip(names, row, strict=True)) for row in rows]


def _bound(values: Values, *, now: datetime) -> dict[str, Any]:
    bound = {name: value if type(value) in _PLAIN else _plain(value) for name, value in values.items()}
    bound["now"] = to_us(now)
    return bound


def _plain(value: object) -> object:
    match value:
        case str():
            return value
        case datetime():
            return to_us(value)
        case timedelta():
            return microseconds(value)
        case _:
            return json.dumps(value, default=to_us)
