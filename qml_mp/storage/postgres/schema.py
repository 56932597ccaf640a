"""Every process: statements made ready for one schema, its version, and the way to this code's version."""

from __future__ import annotations

import re

from psycopg.rows import DictRow

from qml_mp.storage.migrate import no_version, pending
from qml_mp.storage.postgres.link import Link
from qml_mp.storage.postgres.migrations import MIGRATIONS
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

_COMMENT = re.compile("--.*")
_VALUE = re.compile(rb"%\((\w+)\)s")

_MIGRATION_REPLY_TIMEOUT_S = 660.0
"""Longer than the statement timeout that a migration sets for itself."""


class Schema:
    """One schema in a database, through whatever link."""

    def __init__(self, target: Target) -> None:
        self.where = f"schema {target.schema!r} of {target.display_url}"
        self._target = target
        self._quoted = target.quoted_schema
        self._statements: dict[str, bytes] = {}
        self._numbered: dict[str, tuple[bytes, tuple[str, ...]]] = {}

    def statement(self, template: str) -> bytes:
        """The statement with the quoted name of the schema for `{s}` and without comments, rendered once."""
        statement = self._statements.get(template)
        if statement is None:
            text = " ".join(_COMMENT.sub("", template).split()).format(s=self._quoted)
            statement = self._statements[template] = text.encode()
        return statement

    def numbered(self, template: str) -> tuple[bytes, tuple[str, ...]]:
        """The statement with its values numbered as the server has them, and their names in this order. The
        driver would do so at each call of a statement of more than 4096 characters, which is a third of what
        the call costs it."""
        numbered = self._numbered.get(template)
        if numbered is None:
            text = self.statement(template)
            names = tuple(dict.fromkeys(name.decode() for name in _VALUE.findall(text)))
            for number, name in enumerate(names, 1):
                text = text.replace(b"%%(%s)s" % name.encode(), b"$%d" % number)
            numbered = self._numbered[template] = text, names
        return numbered

    def version(self, link: Link) -> int:
        """The version in the database, 0 when there is no schema yet. Reads only. Raises `SchemaMismatch`
        for a schema that does not say its version."""
        if not self._find(link)["has_versions"]:
            return 0
        row = link.execute(self.statement(_VERSION)).fetchone()
        if not row or not row["version"]:
            raise no_version(self.where)
        version: int = row["version"]
        return version

    def migrate(self, link: Link) -> list[int]:
        """Apply what is missing in one transaction; the versions applied.

        Raises `SchemaMismatch` before any write when the schema is newer than this code. Several
        starters may run this at the same moment.
        """
        if not pending(MIGRATIONS, found=self.version(link), where=self.where):
            return []
        usual, link.reply_timeout_s = link.reply_timeout_s, _MIGRATION_REPLY_TIMEOUT_S
        try:
            with link.transaction():
                link.execute(_PATIENCE)
                link.execute(_LOCK_MIGRATION, {"channel": self._target.channel})
                # Read again under the lock: the first of several starters has migrated by now.
                found = self.version(link)
                missing = pending(MIGRATIONS, found=found, where=self.where)
                if found == 0:
                    self._create(link)
                for migration in missing:
                    link.execute(self.statement(migration.sql))
                    link.execute(self.statement(_ADD_VERSION), {"version": migration.version})
        finally:
            link.reply_timeout_s = usual
        return [migration.version for migration in missing]

    def _create(self, link: Link) -> None:
        if not self._find(link)["has_schema"]:
            link.execute(self.statement(_CREATE_SCHEMA))
        link.execute(self.statement(_CREATE_VERSIONS))

    def _find(self, link: Link) -> DictRow:
        found = link.execute(_FIND_VERSIONS, {"schema": self._target.schema}).fetchone()
        assert found is not None  # the statement always gives one row
        return found
