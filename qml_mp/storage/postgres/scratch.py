"""Client: a schema of its own in a PostgreSQL database."""

from __future__ import annotations

import contextlib
import uuid

import psycopg
from psycopg import sql

from qml_mp.errors import StorageError
from qml_mp.storage.postgres.connection import PostgresConnection
from qml_mp.storage.postgres.link import Link, LinkOptions
from qml_mp.storage.postgres.target import Target, parse_target

_PREFIX = "qml_mp_bench_"

_MAY_CREATE = """
SELECT has_database_privilege(current_database(), 'CREATE') AS may_create,
       current_database() AS database, current_user AS role
"""
"""Asked first, because the error of the migration that makes the schema does not say what it is for."""

_LOCK = "SELECT pg_advisory_lock(hashtextextended(%(name)s, 0))"
"""Held until the session ends, however this process ends. Taken before there is a schema."""

_TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended(%(name)s, 0)) AS is_orphan"
"""True: nobody holds the schema, wherever its maker ran."""

_UNLOCK = "SELECT pg_advisory_unlock(hashtextextended(%(name)s, 0))"
"""After `_TRY_LOCK`."""

_FIND = """
SELECT nspname AS name FROM pg_catalog.pg_namespace
WHERE nspname ~ '^qml_mp_bench_[0-9a-f]{32}$' AND pg_catalog.pg_has_role(nspowner, 'MEMBER')
"""
"""Schemas of this kind that this role may drop."""

_DROP = "DROP SCHEMA IF EXISTS {} CASCADE"

_CAVEATS = """
SELECT current_setting('fsync') = 'off' AS no_fsync,
       current_setting('synchronous_commit') = 'off' AS not_synchronous
"""
"""What makes a commit less than durable."""


class PostgresScratch:
    """`Scratch` as a schema that is locked (by an advisory lock) through a connection of this process.

    Raises `StorageError` when the role may not make a schema, `StorageUnavailable` when there is no server.
    """

    def __init__(self, target: Target, options: LinkOptions) -> None:
        self._target = target
        self._name = f"{_PREFIX}{uuid.uuid4().hex}"
        self._connection = PostgresConnection(target, options)
        separator = "&" if "?" in target.conninfo else "?"
        self.url = parse_target(f"{target.conninfo}{separator}schema={self._name}").url
        with self._connection.use("making a schema to measure in", checked=False) as link:
            if link.is_pooled:
                raise StorageError(
                    f"A pooler stands before {target.display_url}, and what would be measured is the pooler. "
                    "Nothing was written. Use the URL of the database itself."
                )
            self._check_rights(link)
            _remove_orphans(link)
            link.execute(_LOCK, {"name": self._name})
            self.caveats = _caveats(link)

    @property
    def place(self) -> str:
        return f"schema {self._name!r} of {self._target.display_url}"

    def remove(self) -> None:
        with self._connection.use("removing the schema that was measured in", checked=False) as link:
            _drop(link, self._name)
        self._connection.close()

    def _check_rights(self, link: Link) -> None:
        row = link.execute(_MAY_CREATE).fetchone()
        assert row is not None  # the statement always gives one row
        if not row["may_create"]:
            raise StorageError(
                f"The role {row['role']!r} may not create a schema in the database {row['database']!r}. This "
                f"needs one of its own, so that schema {self._target.schema!r} is not touched; nothing was "
                "written. Give the role the right (GRANT CREATE ON DATABASE …), or use the URL of a role "
                "that has it."
            )


def _remove_orphans(link: Link) -> None:
    """Drop the schemas that killed processes have left."""
    for row in link.execute(_FIND).fetchall():
        found = link.execute(_TRY_LOCK, {"name": row["name"]}).fetchone()
        if found is not None and found["is_orphan"]:
            # A server whose host was killed a moment ago may still be at its last statement.
            with contextlib.suppress(psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled):
                _drop(link, row["name"])
            link.execute(_UNLOCK, {"name": row["name"]})


def _drop(link: Link, name: str) -> None:
    link.execute(sql.SQL(_DROP).format(sql.Identifier(name)))


def _caveats(link: Link) -> tuple[str, ...]:
    row = link.execute(_CAVEATS).fetchone()
    assert row is not None  # the statement always gives one row
    told = {
        "no_fsync": "fsync is off: a crash of the server's machine can lose what was committed, and more.",
        "not_synchronous": "synchronous_commit is off: a crash can lose commits that have returned.",
    }
    return tuple(sentence for name, sentence in told.items() if row[name])
