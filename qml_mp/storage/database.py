"""Every process: the narrow port through which the storage talks to a database.

What a storage does is written once over this, in the operations that `store` puts together. A backend is this
port, its errors, its schema with migrations, its waker and its table of named SQL (`queries`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from functools import wraps
from inspect import isfunction
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from qml_mp.core.job import Claim
from qml_mp.errors import StorageError
from qml_mp.storage.connection import ProcessConnection
from qml_mp.storage.job_rows import claim_of
from qml_mp.storage.queries import Queries
from qml_mp.storage.rows import Columns, Row, ToInstant
from qml_mp.storage.scratch import Scratch
from qml_mp.storage.storable import NewRow
from qml_mp.storage.waiting import EndedWaker, Waker

Values = Mapping[str, object]
"""What a query is bound to, by name, as Python has it: instants are aware datetimes, durations timedeltas,
sets of names lists. The backend turns them into its own, and adds what all its queries know (its clock)."""

NO_VALUES: Values = MappingProxyType({})

_T = TypeVar("_T")


class RowsRefused(StorageError):
    """Within a transaction, which goes on: what was written `apart` is refused, and undone."""


class Result(Protocol):
    """What a query has done. Asking for it may wait for the reply."""

    def rows(self) -> Sequence[Row]:
        """All rows."""

    def tuples(self) -> Sequence[Columns]:
        """The same without names, for what every job needs."""

    def first(self) -> Row | None:
        """The first row; None when there is none."""

    @property
    def written_at(self) -> datetime | None:
        """Of a query that is said to tell it: the database's instant of the write; None: it hit no row."""

    @property
    def count(self) -> int:
        """How many rows were written: the column `count` of a query that has one, else those it has hit."""


class Transaction(Protocol):
    """Queries between BEGIN and COMMIT."""

    def run(self, query: str, values: Values = NO_VALUES) -> Result:
        """Execute a query, at the latest when a result is asked for or the block ends: a backend with a
        network sends several together, and what was not sent has neither locked nor written anything yet.
        Whoever has many asks in between, since one limit holds for the replies to all that are sent
        together. Results may be asked for after the block too."""

    def run_each(self, query: str, rows: Sequence[Values], values: Values = NO_VALUES) -> Result:
        """Run a query that is made for this with each of the rows, all with the same names, and what is the
        same for all; its `count` is that of all."""

    def insert(self, rows: Sequence[NewRow]) -> Sequence[NewRow]:
        """Store new jobs, none whose id, unique key or firing is there already; of one key that several have,
        the first. Gives those that were not stored and, among several, perhaps some that were."""

    def refusal_of(self, query: str, values: Values) -> str | None:
        """Try a query and undo it: why the values or a constraint of the rows refuse it, None when they do
        not. Only in a transaction that is not `pipelined`."""

    def apart(self, write: Callable[[], _T]) -> _T:
        """Run it. When a constraint refuses its rows, or a trigger of the user's, it is undone and
        `RowsRefused` raised. Only in a transaction that is not `pipelined`. In SQLite, a deferred foreign key
        refuses all at the commit, and so does a trigger that says RAISE(ROLLBACK)."""


class Sender(Protocol):
    """Sends a query, committed by itself, and does not wait for its reply. What is returned waits for it, and
    gives or raises what `Database.write` and `write_each` would; it is called once. An operation in between
    reads the reply first, and keeps it."""

    def send(self, what: str, query: str, values: Values) -> Callable[[], Result]: ...

    def send_each(
        self, what: str, query: str, rows: Sequence[Values], values: Values
    ) -> Callable[[], Result]: ...


class Database(Protocol):
    """One database as one process uses it; its threads take turns.

    A driver's error becomes a `StorageError`, and nothing waits without a bound. `what` says in words what
    an operation is for, for its errors. No operation may be started inside another one of the thread.
    """

    @property
    def connection(self) -> ProcessConnection:
        """This process's connection to it."""

    @property
    def queries(self) -> Queries:
        """The SQL of this backend."""

    @property
    def has_one_writer(self) -> bool:
        """Whether a transaction that writes keeps all others waiting. Then look first, by a read, whether
        there is anything to write."""

    @property
    def sender(self) -> Sender | None:
        """None: whatever is sent is waited for."""

    def now(self) -> datetime:
        """The database's clock."""

    def instant(self, value: object) -> datetime | None:
        """The aware UTC instant of a column; None for NULL and for what is no instant."""

    def refuses_values(self, error: BaseException) -> bool:
        """Whether the error is about the values or a constraint of the rows: the same ones will be refused
        again, and others may be taken."""

    def refuses_rows(self, error: BaseException) -> bool:
        """The same, or that a trigger of the user's refuses them."""

    def read(self, what: str, query: str, values: Values = NO_VALUES) -> Sequence[Row]:
        """The rows of a query that only reads what is committed."""

    def write(self, what: str, query: str, values: Values = NO_VALUES) -> Result:
        """Run one query, committed by itself."""

    def write_each(self, what: str, query: str, rows: Sequence[Values], values: Values = NO_VALUES) -> Result:
        """`Transaction.run_each` for a few rows, committed by itself, all or none."""

    def insert(self, what: str, row: NewRow) -> bool:
        """`Transaction.insert` of one job, committed by itself; whether it was stored."""

    def transaction(
        self, what: str, *, pipelined: bool = True, durable: bool = True, durable_reads: bool = False
    ) -> AbstractContextManager[Transaction]:
        """BEGIN … COMMIT around the block, ROLLBACK on any error. It holds the write lock where there is
        one writer. One that is not `durable` may be lost when the machine goes down, and may be cheaper. With
        `durable_reads`, what it has read cannot be lost then either, although it has changed nothing."""

    def borrow(self, connection: object, use: Callable[[Transaction], list[str]]) -> list[str]:
        """What `use` gives of the caller's own open transaction; commits nothing. `JobStore.enqueue_in` says
        what an error leaves of it.

        Raises `ConfigurationError` when the driver connection is of another driver, has no open
        transaction, or belongs to another database.
        """

    # What `Storage` hands through: the contract of each stands there.

    @property
    def is_on_one_machine(self) -> bool: ...

    def open_waker(self) -> Waker | None: ...

    def commit_mark(self) -> str: ...

    def open_ended_waker(self) -> EndedWaker | None: ...

    def make_scratch(self) -> Scratch: ...

    def is_locked_by_this_process(self) -> bool: ...

    @property
    def caveats(self) -> Iterable[str]: ...


class Operations:
    """Some operations of the storage on the one database.

    Its public methods are those operations: each has ended, and left nothing open, when it returns or raises
    (see `ProcessConnection.whole`). What is returned and uses the connection later sees to that itself.
    """

    _db: Database

    def __init_subclass__(cls) -> None:
        for name, member in list(vars(cls).items()):
            if isfunction(member) and not name.startswith("_"):
                setattr(cls, name, _whole(member))

    def _read(
        self, what: str, query: str, reader: Callable[[Row, ToInstant], _T], values: Values = NO_VALUES
    ) -> list[_T]:
        """The rows of a query that only reads, each as a value of ours."""
        return [reader(row, self._db.instant) for row in self._db.read(what, query, values)]

    def _delete_old(self, what: str, *, any_old: str | None, query: str, values: Values) -> int:
        """Delete what is too old to be kept; how many rows. `any_old` gives a row if the query would hit any:
        with one writer nobody waits for that look, and mostly it is all. None: there are several."""
        if any_old is not None and not self._db.read(what, any_old, values):
            return 0
        # What a machine that goes down brings back is still too old. With one writer all others would wait
        # for the disk; elsewhere somebody else's next commit would have to write out what this leaves.
        with self._db.transaction(what, durable=not self._db.has_one_writer) as transaction:
            deleted = transaction.run(query, values)
        return deleted.count

    def _claims_of(self, rows: Iterable[Row]) -> list[Claim]:
        """The claims of rows that are Processing."""
        return [claim_of(row, self._db.instant) for row in rows]

    def _between(self, row: Row, start: str, end: str) -> timedelta | None:
        """How long it is from one of the row's instants to another; zero when that has passed, None when
        there is none."""
        started_at, ended_at = self._db.instant(row[start]), self._db.instant(row[end])
        return None if started_at is None or ended_at is None else max(ended_at - started_at, timedelta())


def _whole(operation: Callable[..., _T]) -> Callable[..., _T]:
    """`ProcessConnection.whole`, written out: this is on the way of every job."""

    @wraps(operation)
    def run(self: Operations, *args: Any, **kwargs: Any) -> _T:
        connection = self._db.connection
        before = connection.running
        try:
            return operation(self, *args, **kwargs)
        except BaseException:
            connection.end_left(before)
            raise

    return run
