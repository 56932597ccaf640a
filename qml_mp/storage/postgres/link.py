"""Every process: one psycopg connection with all its limits set.

No call waits without a bound: connecting, a statement, a lock and the reply each have a limit.
"""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

from qml_mp.errors import ConfigurationError
from qml_mp.storage.postgres.errors import translate
from qml_mp.storage.postgres.target import Target

_T = TypeVar("_T")

_REPLY_TIMEOUT_S = 8.0
"""Longer than statement_timeout: reached only when the network or the server's host is gone."""
_LIBPQ: Mapping[str, str | int] = {
    "connect_timeout": 2,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
}
_SESSION = {
    "statement_timeout": "5s",
    "lock_timeout": "3s",
    # A worker that was stopped in mid-transaction holds up the others no longer than this.
    "idle_in_transaction_session_timeout": "10s",
    "TimeZone": "UTC",
    # What the guards and SKIP LOCKED are written for, whatever the database's default is.
    "default_transaction_isolation": "read committed",
    "client_min_messages": "warning",
}


class Link(psycopg.Connection[DictRow]):
    """A connection that gives up on a reply that does not come, and is of no use from then on."""

    reply_timeout_s: float = _REPLY_TIMEOUT_S

    def wait(self, gen: Generator[Any, Any, _T], *args: Any, **kwargs: Any) -> _T:
        """As psycopg's, with a deadline; psycopg resumes the generator every 0.1 s when nothing arrives."""
        return super().wait(_bounded(gen, time.monotonic() + self.reply_timeout_s), *args, **kwargs)

    def is_usable(self) -> bool:
        """Whether the idle connection is open and the server has sent nothing.

        What an idle server sends is its goodbye (or a changed setting, after which a new connection
        is as good). Seen before a statement is sent, it spares the caller a write of unknown fate.
        """
        if self.closed:
            return False
        poller = select.poll()
        poller.register(self.fileno(), select.POLLIN)
        return not poller.poll(0)


def open_link(target: Target, *, application_name: str) -> Link:
    """A fresh link in autocommit mode. Raises `StorageUnavailable`, or `ConfigurationError` for the URL."""
    try:
        given = conninfo_to_dict(target.conninfo)
    except psycopg.Error:
        # Without the driver's own text, which can quote the URL, password included.
        raise ConfigurationError(
            f"The storage URL {target.display_url!r} cannot be read; it must look like "
            "postgresql://user:password@host:5432/database, special characters written as %XX."
        ) from None
    ours = {**_LIBPQ, "application_name": application_name, **given, "client_encoding": "utf8"}
    try:
        link = Link.connect(make_conninfo("", **ours), autocommit=True, row_factory=dict_row)
    except psycopg.Error as error:
        raise translate(error, what="connecting", target=target) from error
    try:
        # Set by a statement and not by `options`, which poolers such as PgBouncer refuse.
        link.execute(_set_session())
    except BaseException as error:
        link.close()
        if isinstance(error, psycopg.Error):
            raise translate(error, what="connecting", target=target) from error
        raise
    return link


def _set_session() -> sql.Composed:
    settings = (sql.SQL("set_config({}, {}, false)").format(*pair) for pair in _SESSION.items())
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(settings))


def _bounded(gen: Generator[Any, Any, _T], reply_deadline: float) -> Generator[Any, Any, _T]:
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > reply_deadline:
                gen.close()
                raise psycopg.OperationalError("the server did not reply in time")
            wanted = gen.send(ready)
    except StopIteration as ended:
        result: _T = ended.value
        return result
