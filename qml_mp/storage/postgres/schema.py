"""Every process: the version of the schema, and the way from an older one to this code's."""

from __future__ import annotations

from qml_mp.storage.migrate import check_version, no_version, pending
from qml_mp.storage.postgres import sql_around
from qml_mp.storage.postgres.link import Link
from qml_mp.storage.postgres.migrations import MIGRATIONS
from qml_mp.storage.postgres.statements import Statements
from qml_mp.storage.postgres.target import Target

_MIGRATION_REPLY_TIMEOUT_S = 660.0
"""Longer than the statement timeout that a migration sets for itself."""


def where(target: Target) -> str:
    """The schema as messages name it."""
    return f"schema {target.schema!r} of {target.display_url}"


def found_version(link: Link, target: Target, statements: Statements) -> int:
    """The version in the database, 0 when there is no schema yet. Reads only. Raises `SchemaMismatch`
    for a schema that does not say its version."""
    found = link.execute(sql_around.FIND_VERSIONS, {"schema": target.schema}).fetchone()
    if not found or not found["has_versions"]:
        return 0
    row = link.execute(statements[sql_around.VERSION]).fetchone()
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
            link.execute(sql_around.PATIENCE)
            link.execute(sql_around.LOCK_MIGRATION, {"channel": target.channel})
            # Read again under the lock: the first of several starters has migrated by now.
            found = found_version(link, target, statements)
            missing = pending(MIGRATIONS, found=found, where=where(target))
            if found == 0:
                _create_schema(link, target, statements)
            for migration in missing:
                link.execute(statements[migration.sql])
                link.execute(statements[sql_around.ADD_VERSION], {"version": migration.version})
    finally:
        link.reply_timeout_s = usual
    return [migration.version for migration in missing]


def _create_schema(link: Link, target: Target, statements: Statements) -> None:
    found = link.execute(sql_around.FIND_VERSIONS, {"schema": target.schema}).fetchone()
    if not found or not found["has_schema"]:
        link.execute(statements[sql_around.CREATE_SCHEMA])
    link.execute(statements[sql_around.CREATE_VERSIONS])
