"""Every process: what both backends share about schema versions.

A backend's migrations stand in its own package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qml_mp.errors import SchemaMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One numbered change of a schema, applied once and never edited after its release."""

    version: int
    sql: str
    """One or more statements."""


def latest_version(migrations: Sequence[Migration]) -> int:
    """The version that this code needs."""
    return migrations[-1].version


def pending(migrations: Sequence[Migration], *, found: int, where: str) -> list[Migration]:
    """What has to be applied to a schema of version `found`; raises `SchemaMismatch` when it is newer."""
    if found > latest_version(migrations):
        check_version(migrations, found=found, where=where)
    return [migration for migration in migrations if migration.version > found]


def check_version(migrations: Sequence[Migration], *, found: int, where: str) -> None:
    """Raise `SchemaMismatch` unless the schema at `where` (for people) is exactly what this code needs."""
    needed = latest_version(migrations)
    if found > needed:
        raise SchemaMismatch(
            f"The schema in {where} has version {found}, newer than this code, which needs {needed}. "
            "Nothing was written; upgrade qml-mp on this machine."
        )
    if found < needed:
        raise SchemaMismatch(
            f"The schema in {where} has version {found}, older than this code, which needs {needed}. "
            "Nothing was written; stop every server on it, by SIGTERM or with the qml-mp that it runs (this "
            "one cannot read the schema), then run `qml-mp migrate`."
        )


def no_version(where: str) -> SchemaMismatch:
    """The error for tables of versions that hold none: no migration leaves them so."""
    return SchemaMismatch(
        f"The schema in {where} does not say its version, so it is older than this code or not whole. "
        "Nothing was written; restore a backup, or name another storage."
    )
