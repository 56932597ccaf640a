"""Every process: the port to one schema of a PostgreSQL database."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

import psycopg
from psycopg.pq import ExecStatus
from psycopg.rows import DictRow, tuple_row

from qml_mp.errors import InvalidJob, StorageUnavailable
from qml_mp.storage.database import NO_VALUES, Transaction, Values
from qml_mp.storage.postgres.arrays import array_of, columns_of, send_arrays_in_binary
from qml_mp.storage.postgres.connection import PostgresConnection
from qml_mp.storage.postgres.errors import (
    is_cured_by_another_connection,
    is_out_of_step,
    refuses_rows,
    refuses_values,
    translate,
)
from qml_mp.storage.postgres.foreign import ForeignConnections
from qml_mp.storage.postgres.inserting import insert_jobs, is_plain, plain_values
from qml_mp.storage.postgres.instants import instant_of, without_unreadable_instants
from qml_mp.storage.postgres.link import Link, LinkOptions, open_link
from qml_mp.storage.postgres.queries import QUERIES
from qml_mp.storage.postgres.queries.common import Told
from qml_mp.storage.postgres.queries.jobs import COPY, INSERT_ONE, INSERT_PLAIN
from qml_mp.storage.postgres.scratch import PostgresScratch
from qml_mp.storage.postgres.target import parse_target
from qml_mp.storage.postgres.undoing import apart, refusal_of
from qml_mp.storage.postgres.waker import EndedListener, NotifyWaker
from qml_mp.storage.rows import Columns, Row
from qml_mp.storage.storable import NewRow
from qml_mp.storage.waiting import EndedWaker, Waker

_NOW = "SELECT clock_timestamp() AS now"
# Which transactions have ended: a number for those that have begun, and those among them that go on. It looks
# into no table, and costs the writers nothing, as a notification at each commit would.
_MARK = "SELECT pg_current_snapshot()::text AS mark"
_POOLED = (
    "A pooler stands before %s, so no commit wakes this server: it looks for jobs every polling_interval. "
    "If the pooler keeps sessions (pool_mode = session), put pooler=session into the URL"
)

_T = TypeVar("_T")

logger = logging.getLogger(__name__)


class PostgresDatabase:
    """`Database` in one schema, all instants by the server's clock.

    `application_name` is shown in the server's views; `patience` bounds the wait for a lock, and everything
    else an operation waits for follows from it. Raises `ConfigurationError` for a URL or schema name that
    cannot be; connects when first used.
    """

    queries = QUERIES
    has_one_writer = False
    is_on_one_machine = False  # servers may be anywhere
    caveats = ()
    instant = staticmethod(instant_of)
    refuses_rows = staticmethod(refuses_rows)

    def __init__(self, url: str, *, application_name: str, patience: timedelta) -> None:
        options = LinkOptions(application_name=application_name, patience=patience)
        self.connection = PostgresConnection(parse_target(url), options)
        self._foreign = ForeignConnections(self.connection)
        self._can_listen = True

    def now(self) -> datetime:
        with self.connection.use("asking for the time", checked=False) as link, _alone(link):
            cursor = link.execute(_NOW)
        row = cursor.fetchone()
        now = self.instant(row and row["now"])
        assert now is not None  # the statement always gives one row
        return now

    def refuses_values(self, error: BaseException) -> bool:
        return isinstance(error, InvalidJob) or refuses_values(error)

    def read(self, what: str, query: str, values: Values = NO_VALUES) -> Sequence[Row]:
        """Run once more when the connection proved dead."""
        return self._run(what, query, values, again_after=is_cured_by_another_connection).rows()

    def write(self, what: str, query: str, values: Values = NO_VALUES) -> _Result:
        """Run once more when the server knew nothing of the statement any more, and so did nothing."""
        return self._run(what, query, values, again_after=is_out_of_step)

    def write_each(
        self, what: str, query: str, rows: Sequence[Values], values: Values = NO_VALUES
    ) -> _Result:
        return self.write(what, query, {**columns_of(rows), **values})

    @property
    def sender(self) -> PostgresDatabase | None:
        return self if self.connection.can_send else None

    def send(self, what: str, query: str, values: Values) -> Callable[[], _Result]:
        sent, result = self.connection.send(
            what, lambda link: _Transaction(self.connection, link).run(query, values)
        )

        def receive() -> _Result:
            try:
                self.connection.receive(what, sent)
            except StorageUnavailable as error:
                if not isinstance(error.__cause__, psycopg.Error) or not is_out_of_step(error.__cause__):
                    raise
                return self._run_once(what, query, values, False)
            return result

        return receive

    def send_each(
        self, what: str, query: str, rows: Sequence[Values], values: Values
    ) -> Callable[[], _Result]:
        return self.send(what, query, {**columns_of(rows), **values})

    def insert(self, what: str, row: NewRow) -> bool:
        insert = partial(self._run, what, again_after=is_out_of_step, announced=True)
        if is_plain(row):
            return insert(INSERT_PLAIN, plain_values(row)).count > 0
        return insert(INSERT_ONE, {**row._asdict(), "tells": False}).count > 0

    @contextmanager
    def transaction(
        self,
        what: str,
        *,
        pipelined: bool = True,
        durable: bool = True,
        durable_reads: bool = False,  # noqa: ARG002  # a durable commit is not seen before it is
    ) -> Iterator[_Transaction]:
        with self.connection.use(what) as link, _between_begin_and_commit(link, pipelined=pipelined):
            if not durable:
                link.execute("SET LOCAL synchronous_commit TO off")
            yield _Transaction(self.connection, link)

    def borrow(self, connection: object, use: Callable[[Transaction], list[str]]) -> list[str]:
        try:
            return use(_Transaction(self.connection, self._foreign.checked(connection), is_ours=False))
        except psycopg.Error as error:
            what = "enqueueing in the caller's transaction"
            raise translate(error, what=what, target=self.connection.target) from error
        except UnicodeEncodeError as error:
            raise InvalidJob(f"The client_encoding of the connection has no way to write: {error}.") from None

    def open_waker(self) -> Waker | None:
        """None behind a pooler, whose sessions do not listen for one client; that is said once."""
        if self._can_listen:
            link = open_link(self.connection.target, self.connection.options)
            self._can_listen = not link.is_pooled
            if self._can_listen:
                return NotifyWaker(self.connection.target, link)
            link.close()
            logger.info(_POOLED, self.connection.display_url)
        return None

    def commit_mark(self) -> str:
        with self.connection.use("looking for commits", checked=False) as link:
            row = link.execute(_MARK).fetchone()
        return "" if row is None else str(row["mark"])

    def open_ended_waker(self) -> EndedWaker | None:
        """None behind a pooler."""
        if self._can_listen:
            link = open_link(self.connection.target, self.connection.options)
            if not link.is_pooled:
                return EndedListener(self.connection.target, link)
            self._can_listen = False
            link.close()
        return None

    def make_scratch(self) -> PostgresScratch:
        return PostgresScratch(self.connection.target, self.connection.options)

    def is_locked_by_this_process(self) -> bool:
        """False: what is inserted in an open transaction locks nobody else's rows."""
        return False

    def _run(
        self,
        what: str,
        query: str,
        values: Values,
        *,
        again_after: Callable[[psycopg.Error], bool],
        announced: bool = False,
    ) -> _Result:
        """`announced`: when a row was written, which has what is to be told unless it has been."""
        try:
            return self._run_once(what, query, values, announced)
        except StorageUnavailable as error:
            if not isinstance(error.__cause__, psycopg.Error) or not again_after(error.__cause__):
                raise
        return self._run_once(what, query, values, announced)

    def _run_once(self, what: str, query: str, values: Values, announced: bool) -> _Result:
        with self.connection.use(what) as link:
            with _alone(link):
                result = _Transaction(self.connection, link).run(query, values)
            if announced and (row := result.first()) is not None and row["told"] is None:
                self.connection.announce(Told(row["to_tell"]))
            return result


class _Result:
    """`Result` of a statement whose reply may be on its way."""

    def __init__(self, cursor: psycopg.Cursor[Columns]) -> None:
        self._cursor = cursor
        self._tuples: list[Columns] | None = None
        self._first: DictRow | None = None
        """Kept, as it is asked for several times and its names are made anew each time. No `cached_property`:
        up to Python 3.11 all threads would share its lock, which one holds while it waits for the reply."""

    def rows(self) -> Sequence[DictRow]:
        return self._named(self.tuples())

    def tuples(self) -> Sequence[Columns]:
        if self._tuples is None:
            try:  # Waits for the reply, which alone says whether it has rows.
                self._tuples = self._cursor.fetchall()
            except psycopg.ProgrammingError as error:
                reply = self._cursor.pgresult
                if error.sqlstate or reply is None or reply.status != ExecStatus.COMMAND_OK:
                    raise  # of another statement, if it is the server's
                self._tuples = []
            except psycopg.DataError as error:
                if error.sqlstate:  # the server's, about a value, and not a loader's about what it gave
                    raise
                self._tuples = without_unreadable_instants(self._cursor)
        return self._tuples

    def first(self) -> DictRow | None:
        if self._first is None:
            self._first = next(iter(self._named(self.tuples()[:1])), None)
        return self._first

    def _named(self, rows: Sequence[Columns]) -> list[DictRow]:
        names = [column.name for column in self._cursor.description or ()] if rows else []
        return [dict(zip(names, row, strict=True)) for row in rows]

    @property
    def written_at(self) -> datetime | None:
        row = self.first()
        return None if row is None else instant_of(row["now"])

    @property
    def count(self) -> int:
        first = self.first() or {}
        return int(first["count"]) if "count" in first else self._cursor.rowcount


class _Transaction:
    """`Transaction` on a connection: ours, or the caller's."""

    def __init__(
        self, own: PostgresConnection, connection: psycopg.Connection[DictRow], *, is_ours: bool = True
    ) -> None:
        self._own = own
        self._connection = connection
        self._is_ours = is_ours

    def run(self, query: str, values: Values = NO_VALUES) -> _Result:
        statement, names = self._own.schema.numbered(query)
        target = self._own.target
        known = {"channel": target.channel, "ended_channel": target.ended_channel, **values}
        bound = [known[name] for name in names]
        if self._is_ours:
            bound = [array_of(value) if isinstance(value, list) else value for value in bound]
        # A cursor of our own, with rows of our own shape, whatever the caller's connection has.
        cursor = psycopg.RawCursor(self._connection, row_factory=tuple_row)
        if not self._is_ours:
            send_arrays_in_binary(cursor)
        return _Result(cursor.execute(statement, bound))

    def run_each(self, query: str, rows: Sequence[Values], values: Values = NO_VALUES) -> _Result:
        """With one array for each column."""
        return self.run(query, {**columns_of(rows), **values})

    def insert(self, rows: Sequence[NewRow]) -> Sequence[NewRow]:
        copy = self._own.schema.statement(COPY)
        return insert_jobs(self._connection, rows, run=self.run, copy=copy)

    def refusal_of(self, query: str, values: Values) -> str | None:
        return refusal_of(self._connection, lambda: self.run(query, values))

    def apart(self, write: Callable[[], _T]) -> _T:
        return apart(self.run, write)


def _alone(link: Link) -> AbstractContextManager[None]:
    """For one statement, which has the settings that it needs."""
    return _between_begin_and_commit(link, pipelined=True) if link.is_pooled else nullcontext()


@contextmanager
def _between_begin_and_commit(link: Link, *, pipelined: bool) -> Iterator[None]:
    with _pipeline(link, wanted=pipelined):
        link.begin()
        yield
        ended = link.execute("COMMIT")
    if ended.statusmessage != "COMMIT":
        # The server rolls back a transaction that has failed, and calls that a success.
        raise psycopg.errors.InFailedSqlTransaction("it had failed before its COMMIT, and was rolled back")


def _pipeline(link: Link, *, wanted: bool) -> AbstractContextManager[object]:
    return link.pipeline() if wanted and psycopg.Pipeline.is_supported() else nullcontext()
