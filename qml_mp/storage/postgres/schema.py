"""Every process: the version of the schema, and the way from an older one to this code's."""

from __future__ import annotations

from qml_mp.storage.migrate import check_version, no_version, pending
from qml_mp.storage.postgres.link import Link
from qml_mp.storage.postgres.migrations import MIGRATIONS
from qml_mp.storage.postgres.statements import Statements
from qml_mp.storage.postgres.target import Target

_FIND_VERSIONS = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s) AS has_schema,
       EXISTS (
           SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
           WHERE n.nspname = %(schema)s AND c.relname = 'schema_version'
       ) AS has_versions
"""
"""What is there; asked first, because a SELECT from a missing table is an error. From the catalogue's
tables, because to_regclass may answer from a cache that another starter's migration has outdated."""

_VERSION = "SELECT coalesce(max(version), 0) AS version FROM {s}.schema_version"
"""The version of the schema."""

_LOCK_MIGRATION = "SELECT pg_advisory_xact_lock(hashtextextended(%(channel)s, 0))"
"""Held until the commit: of several starters one migrates, and the others then find it done."""

_PATIENCE = "SELECT set_config('lock_timeout', '60s', true), set_config('statement_timeout', '600s', true)"
"""In this transaction: time for another starter's migration, and for building an index."""

_CREATE_SCHEMA = "CREATE SCHEMA IF NOT EXISTS {s}"
"""Where everything of ours lives; run when it is not there, since a role may be allowed to use a schema
and not to create any."""

_CREATE_VERSIONS = """
CREATE TABLE IF NOT EXISTS {s}.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
"""Which migrations were applied."""

_ADD_VERSION = "INSERT INTO {s}.schema_version (version) VALUES (%(version)s)"
"""Note that a migration was applied."""

_MIGRATION_REPLY_TIMEOUT_S = 660.0
"""Longer than the statement timeout that a migration sets for itself."""


def where(target: Target) -> str:
    """The schema as messages name it."""
    return f"schema {target.schema!r} of {target.display_url}"


def found_version(link: Link, target: Target, statements: Statements) -> int:
    """The version in the database, 0 when there is no schema yet. Reads only. Raises `SchemaMismatch`
    for a schema that does not say its version."""
    found = link.execute(_FIND_VERSIONS, {"schema": target.schema}).fetchone()
    if not found or not found["has_versions"]:
        return 0
    row = link.execute(statements[_VERSION]).fetchone()
    if not row or not row["version"]:
        raise no_version(where(target))
    version: int = row["version"]
    return version


def check_found(found: int, target: Target) -> None:
    """Raise `SchemaMismatch` unless the version is the one that this code needs."""
    check_version(MIGRATIONS, found=found, where=where(target))


def migrate(link: Link, target: Target, statements: Statements) -> list[int]:
    """Apply what is missing in one transaction; the versions applied.

    Raises `SchemaMismatch` before any write when the schema is newer than this code. Several
    starters may run this at the same moment.
    """
    if not pending(MIGRATIONS, found=found_version(link, target, statements), where=where(target)):
        return []
    usual, link.reply_timeout_s = link.reply_timeout_s, _MIGRATION_REPLY_TIMEOUT_S
    try:
        with link.transaction():
            link.execute(_PATIENCE)
            link.execute(_LOCK_MIGRATION, {"channel": target.channel})
            # Read again under the lock: the first of several starters has migrated by now.
            found = found_version(link, target, statements)
            missing = pending(MIGRATIONS, found=found, where=where(target))
            if found == 0:
                _create_schema(link, target, statements)
            for migration in missing:
                link.execute(statements[migration.sql])
                link.execute(statements[_ADD_VERSION], {"version": migration.version})
    finally:
        link.reply_timeout_s = usual
    return [migration.version for migration in missing]


def _create_schema(link: Link, target: Target, statements: Statements) -> None:
    found = link.execute(_FIND_VERSIONS, {"schema": target.schema}).fetchone()
    if not found or not found["has_schema"]:
        link.execute(statements[_CREATE_SCHEMA])
    link.execute(statements[_CREATE_VERSIONS])
