"""Every process: one psycopg connection with all its limits set.

No call waits without a bound: connecting, a statement, a lock and the reply each have a limit.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.generators import fetch_many
from psycopg.pq import Conninfo
from psycopg.rows import DictRow, dict_row
from psycopg.waiting import Wait

from qml_mp.errors import StorageUnreachable
from qml_mp.standard_streams import occupy_standard_streams
from qml_mp.storage.postgres.driving import SocketWait, connect_by_driving, drive
from qml_mp.storage.postgres.errors import NoReply, could_not_connect
from qml_mp.storage.postgres.instants import read_iso_instants
from qml_mp.storage.postgres.pipeline import Pipeline
from qml_mp.storage.postgres.target import OURS, NewestHost, Pooler, Target, unreadable
from qml_mp.storage.shown_url import unknown_parameters
from qml_mp.storage.waiting import StorageWait

_T = TypeVar("_T")

_WORK_MS = 2000
"""What a statement may take besides waiting for locks."""
_NETWORK_MS = 1000

_LIBPQ: Mapping[str, str | int] = {
    "connect_timeout": 2,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}
_PATIENT_CONNECT_TIMEOUT_S = 8
"""Where connecting holds nobody up: it takes several replies, which a slow server gives one by one."""
SESSION = {
    # A worker that was stopped in mid-transaction holds up the others no longer than this.
    "idle_in_transaction_session_timeout": "10s",
    # Nor does one that was stopped, or runs a job, before it has read a reply that no buffer holds.
    "tcp_user_timeout": "10s",
    "TimeZone": "UTC",
    # How instants, durations and arrays are written, whatever the role's and the database's defaults are.
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "array_nulls": "on",
    # What the guards and SKIP LOCKED are written for, whatever the database's default is.
    "default_transaction_isolation": "read committed",
    "client_min_messages": "warning",
    # A plan made while the table was empty is kept by an idle worker, and must not be a scan of the
    # whole table when a burst of jobs has filled it. Every statement here has an index to use. To walk over
    # all of an index is such a scan, too, so that rows are found by an array of their ids and not by a join.
    "enable_seqscan": "off",
    # Rows that are written as a list of ids are locked in the order of the index, not of their place on disk:
    # that differs from row to row, and two that end the same claims would wait for each other.
    "enable_bitmapscan": "off",
    # A statement that is prepared is planned once. Left to choose, the server plans one that is given arrays
    # again at every call, which costs more than to run it; none here has a better plan for some values.
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",  # it would take the plans that have none for expensive ones
}
_SINCE = {140000: {"idle_session_timeout": "0"}, 170000: {"transaction_timeout": "0"}}
"""The same of servers from these versions on. A listener is idle for long; all else has limits of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """How a link introduces itself, and how long it waits."""

    application_name: str
    """What the server's own views show."""
    patience: timedelta
    """Longest wait for a lock of somebody else."""
    waiting: StorageWait | None = None
    """Who waits for replies; None: the link itself."""

    @property
    def lock_timeout_ms(self) -> int:
        """The patience; at least 1, because 0 would mean no limit."""
        return max(1, self.patience // timedelta(milliseconds=1))

    @property
    def statement_timeout_ms(self) -> int:
        """All locks and all the work of one statement."""
        return self.lock_timeout_ms + _WORK_MS

    @property
    def reply_timeout_s(self) -> float:
        """Longer than any statement: reached only when the network or the server's host is gone."""
        return (self.statement_timeout_ms + _NETWORK_MS) / 1000


class Link(psycopg.Connection[DictRow]):
    """A connection that gives up on a reply that does not come, and is of no use from then on."""

    reply_timeout_s: float = _WORK_MS / 1000
    """While connecting; `open_link` then sets that of its options."""
    waiting: StorageWait | None = None
    settings: bytes | None = None
    """Set for each transaction by itself, because a pooler stands between: what is set or prepared for a
    session would be gone at the next transaction, or be another client's. None: they are set for good."""
    _expects_reply = False
    """To what was sent aside."""
    _only_sends = False
    _unread: Generator[Any, Any, Any] | None = None
    """What is left of an exchange that was sent."""

    def wait(self, gen: Generator[Any, Any, _T], *args: Any, **kwargs: Any) -> _T:
        """As psycopg's, with a deadline; psycopg resumes the generator every 0.1 s when nothing arrives."""
        deadline = time.monotonic() + self.reply_timeout_s
        if self._only_sends:
            self._only_sends = False
            self._unread = super().wait(_bounded(_until_sent(gen), deadline))
            return cast(_T, None)  # the cursor that runs it makes nothing of it
        if self.waiting is not None:
            return drive(gen, self.waiting, deadline=deadline, fd=self.fileno())
        return super().wait(_bounded(gen, deadline), *args, **kwargs)

    @contextmanager
    def pipeline(self) -> Iterator[psycopg.Pipeline]:
        """Of our own kind: see there for when it sends."""
        if self._pipeline is None:
            self._pipeline = Pipeline(self)
        with super().pipeline() as pipeline:
            yield pipeline

    @property
    def is_pooled(self) -> bool:
        """Whether its transactions may be different sessions'."""
        return self.settings is not None

    def begin(self) -> None:
        """Begin a transaction."""
        if self.settings is None:
            self.execute("BEGIN")
        else:
            self.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            self.execute(self.settings)

    def send(self, execute: Callable[[], _T]) -> _T:
        """Have a statement executed up to where the server has it. Its cursor has the result once
        `read_reply` has returned; until then nothing else is executed."""
        self._only_sends = True
        try:
            return execute()
        finally:
            self._only_sends = False

    @property
    def is_unread(self) -> bool:
        """Whether there is a reply to read."""
        return self._unread is not None

    def read_reply(self) -> None:
        """Wait for the reply to what `send` has sent."""
        unread, self._unread = self._unread, None
        if unread is not None:
            self.wait(unread)

    def send_aside(self, statement: bytes) -> None:
        """Send a statement of which nobody wants to know how it ends: `is_usable` takes its reply."""
        self.pgconn.send_query(statement)
        self.pgconn.flush()
        self._expects_reply = True

    def is_usable(self) -> bool:
        """Whether the idle connection is open and the server has sent nothing.

        What an idle server sends is its goodbye (or a changed setting, after which a new connection
        is as good). Seen before a statement is sent, it spares the caller a write of unknown fate. Raises
        `NoReply` when what was sent aside is not answered.
        """
        if self.closed or not self._has_taken_reply():
            return False
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        return not poller.poll(0)

    def _has_taken_reply(self) -> bool:
        """Whether none is on its way, and the connection is open. It has mostly come by now."""
        expected, self._expects_reply = self._expects_reply, False
        try:
            if expected:
                self.pgconn.consume_input()
                self.wait(fetch_many(self.pgconn))
        except NoReply:
            raise  # another connection would wait for this server as long again
        except psycopg.Error:
            return False
        return not self.closed  # libpq tells a lost connection as a result, and not as an error


def open_link(target: Target, options: LinkOptions) -> Link:
    """A fresh link in autocommit mode. Raises `StorageUnavailable`, or `ConfigurationError` for the URL."""
    given = read_conninfo(target)
    patient = {} if options.waiting is None else {"connect_timeout": _PATIENT_CONNECT_TIMEOUT_S}
    ours = {**_LIBPQ, **patient, "application_name": options.application_name, **given}
    ours["client_encoding"] = "utf8"
    occupy_standard_streams()
    try:
        link = _connect(ours, options.waiting, target.newest)
    except psycopg.Error as error:
        raise could_not_connect(error, target=target) from None
    except OSError as error:  # of what the driver waits with
        raise StorageUnreachable(
            f"No connection to PostgreSQL at {target.display_url} can be opened from here: {error.strerror}. "
            "If descriptors have run out, raise the limit (ulimit -n) or run fewer workers."
        ) from error
    try:
        link.reply_timeout_s = options.reply_timeout_s
        _set_up(link, target, options)
    except BaseException as error:
        link.close()
        if isinstance(error, psycopg.Error):
            raise could_not_connect(error, target=target) from None
        raise
    return link


def read_conninfo(target: Target) -> Mapping[str, Any]:
    """What the driver makes of the URL. Raises `ConfigurationError` when it can make nothing of it."""
    try:
        return _read(target.conninfo)
    except (psycopg.Error, UnicodeError):  # whose own text can quote the password
        known = [*OURS, *(each.keyword.decode() for each in Conninfo.get_defaults())]
        raise unreadable(target.display_url, unknown_parameters(target.url, known)) from None


@lru_cache  # for the sake of forked workers, as `parse_target` is
def _read(conninfo: str) -> Mapping[str, Any]:
    return conninfo_to_dict(conninfo)


def _connect(parameters: dict[str, Any], waiting: StorageWait | None, newest: NewestHost) -> Link:
    made = connect_by_driving(parameters, waiting or SocketWait(), newest=newest)
    link = Link(made, row_factory=dict_row)
    link.waiting = waiting
    link.autocommit = True
    link.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # of `transaction`, whatever the default is
    return link


def _set_up(link: Link, target: Target, options: LinkOptions) -> None:
    """Set the session up: by a statement and not by `options`, which poolers such as PgBouncer refuse. Behind
    one that gives each transaction another session nothing is set: it would stay for other clients."""
    limits = {
        "lock_timeout": f"{options.lock_timeout_ms}ms",
        "statement_timeout": f"{options.statement_timeout_ms}ms",
    }
    settings = SESSION | limits
    for version, newer in _SINCE.items():
        settings |= newer if link.info.server_version >= version else {}
    is_set = False
    if target.pooler is not Pooler.TRANSACTION:
        statement = _settings(settings, is_local=False)
        if target.pooler is None:
            # A pooler is told by this: it hands out process ids of its own.
            statement += f" WHERE pg_backend_pid() = {link.pgconn.backend_pid}"
        is_set = link.execute(statement.encode()).fetchone() is not None
    if not is_set:
        del settings["default_transaction_isolation"]  # `begin` says it
        link.settings = _settings(settings, is_local=True).encode()
        link.prepare_threshold = None
        read_iso_instants(link)


def _settings(settings: Mapping[str, str], *, is_local: bool) -> str:
    """All of it is written here or a number: nothing has to be quoted."""
    parts = (f"set_config('{name}', '{value}', {is_local})" for name, value in settings.items())
    return f"SELECT {', '.join(parts)}"


def _until_sent(gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Generator[Any, Any, Any] | None]:
    """Of an exchange as much as has to write. The rest, which reads; None: there is nothing left of it."""
    try:
        wanted = next(gen)
        while wanted & Wait.W:
            wanted = gen.send((yield wanted))
    except StopIteration:
        return None
    return _resumed(gen, wanted)


def _resumed(gen: Generator[Any, Any, Any], wanted: int) -> Generator[Any, Any, Any]:
    """The rest of an exchange that waits for this."""
    try:
        while True:
            wanted = gen.send((yield wanted))
    except StopIteration as ended:
        return ended.value


def _bounded(gen: Generator[Any, Any, _T], reply_deadline: float) -> Generator[Any, Any, _T]:
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > reply_deadline:
                gen.close()
                raise NoReply("the server did not reply in time")
            wanted = gen.send(ready)
    except StopIteration as ended:
        result: _T = ended.value
        return result
