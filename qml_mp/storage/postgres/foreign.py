"""Client: the caller's own connection, looked at before our rows go into the caller's transaction."""

from __future__ import annotations

import weakref
from typing import Any

import psycopg
from psycopg import pq
from psycopg.rows import DictRow, dict_row

from qml_mp.errors import ConfigurationError, shown_type
from qml_mp.storage.postgres.connection import PostgresConnection

_IDENTITY = """
SELECT (SELECT oid FROM pg_database WHERE datname = current_database()) AS database_oid,
       current_setting('port')::integer AS port,
       (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint AS started_at_us,
       (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AS schema_oid
"""
"""What tells this database from every other; needs no privilege. The answer is the same by whatever way and
with whatever settings a session asks: it is integers alone, and the port is not that of the connection, which
may go by a Unix socket."""


class ForeignConnections:
    """Which of the caller's connections lead to our own database; each is asked once."""

    def __init__(self, database: PostgresConnection) -> None:
        self._database = database
        self._known: weakref.WeakSet[psycopg.Connection[Any]] = weakref.WeakSet()

    def checked(self, connection: object) -> psycopg.Connection[Any]:
        """The connection, or `ConfigurationError` when our rows cannot go into its transaction."""
        where = self._database.target.display_url
        if not isinstance(connection, psycopg.Connection):
            raise ConfigurationError(
                f"The connection is a {shown_type(connection)}; this app's storage is {where}, "
                "so it must be a psycopg.Connection to that database."
            )
        status = connection.pgconn.transaction_status
        if connection.autocommit and status == pq.TransactionStatus.IDLE:
            raise ConfigurationError(
                "The connection has no open transaction and commits each statement by itself; enqueue "
                "inside `with connection.transaction():`."
            )
        if connection not in self._known:
            with self._database.use("comparing databases") as link:  # makes the schema when there is none yet
                own = self._identity(link)
            if self._identity(connection) != own:
                raise ConfigurationError(
                    f"The connection belongs to another database ({connection.info.dbname!r} on "
                    f"{connection.info.host}); this app's storage is {where}. Use a connection to that one."
                )
            self._known.add(connection)
        return connection

    def _identity(self, connection: psycopg.Connection[Any]) -> DictRow | None:
        cursor = psycopg.Cursor(connection, row_factory=dict_row)  # the caller's own may shape rows otherwise
        return cursor.execute(_IDENTITY, {"schema": self._database.target.schema}).fetchone()
