"""Every process: statements made ready for one schema, its version, and the way to this code's version."""

from __future__ import annotations

import re

from psycopg.rows import DictRow

from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.storage.migrate import no_version, pending
from qml_mp.storage.postgres.errors import NO_WRITES
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

_COUNT_TABLES = """
SELECT count(*) AS there
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = ANY(%(tables)s)
"""
"""How many of our tables are there."""

_FIND_SERVER = """
SELECT current_setting('server_version_num')::integer AS number, current_setting('server_version') AS version,
       current_setting('server_encoding') AS encoding
"""
"""What kind of server and database it is."""

_FIND_RIGHTS = """
SELECT current_user AS role, current_database() AS database,
       has_database_privilege(current_database(), 'CREATE') AS may_make_schema,
       (SELECT has_schema_privilege(oid, 'CREATE') FROM pg_catalog.pg_namespace
        WHERE nspname = %(schema)s) AS may_make_tables,
       (SELECT bool_and(has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
                        AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
        FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relname = ANY(%(tables)s)) AS may_write,
       current_setting('transaction_read_only') = 'on' AS is_read_only
"""
"""What the role may do that a server needs; NULL of what is not there. Each table is looked at, since a grant
on all tables is for those of its day, and a migration adds others. A standby is read-only too."""

_FIND_PLACE = """
SELECT current_setting('port') || ':' || d.oid || ':' || n.oid AS place,
       (SELECT has_function_privilege(p.oid, 'EXECUTE') FROM pg_catalog.pg_proc AS p
        WHERE p.proname = 'pg_control_system' AND p.pronamespace = 'pg_catalog'::regnamespace)
           AS may_ask_for_cluster
FROM pg_catalog.pg_database AS d, pg_catalog.pg_namespace AS n
WHERE d.datname = current_database() AND n.nspname = %(schema)s
"""
"""Which schema it is; NULL where there is no function to ask the cluster by. The port is the server's,
whatever leads to it."""

_FIND_CLUSTER = "SELECT system_identifier::text AS cluster FROM pg_catalog.pg_control_system()"
"""In which cluster: two that were made in the same way have the same oids."""

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

_LOWEST_VERSION = 13

_TABLES = [name for each in MIGRATIONS for name in re.findall(r"CREATE TABLE \{s\}\.(\w+)", each.sql)]
"""Those of ours; in the same schema there may be somebody else's."""

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

    def is_whole(self, link: Link) -> bool:
        """Whether all tables are there. Reads only."""
        found = link.execute(_COUNT_TABLES, {"schema": self._target.schema, "tables": _TABLES}).fetchone()
        assert found is not None  # the statement always gives one row
        return bool(found["there"] == len(_TABLES))

    def place(self, link: Link) -> str:
        """`ProcessConnection.place`. A dump that was restored is told from its original by it, and a copy of
        the whole cluster by its port alone."""
        found = link.execute(_FIND_PLACE, {"schema": self._target.schema}).fetchone()
        if found is None:
            return ""
        cluster = link.execute(_FIND_CLUSTER).fetchone() if found["may_ask_for_cluster"] else None
        return f"{cluster['cluster']}:{found['place']}" if cluster else str(found["place"])

    def migrate(self, link: Link) -> list[int]:
        """Apply what is missing in one transaction; the versions applied.

        Raises `SchemaMismatch` before any write when the schema is newer than this code, `StorageError` for
        a database that cannot hold it. Several starters may run this at the same moment.
        """
        self._check_server(link)
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

    def check_rights(self, link: Link) -> None:
        """`Storage.check_rights`. Reads only."""
        self._check_server(link)
        found = link.execute(_FIND_RIGHTS, {"schema": self._target.schema, "tables": _TABLES}).fetchone()
        assert found is not None  # the statement always gives one row
        if found["is_read_only"]:
            where = f"PostgreSQL at {self._target.display_url}"
            raise StorageUnavailable(f"{where} takes no writes. {NO_WRITES}")
        if found["may_write"] is False:
            raise StorageError(
                f"PostgreSQL at {self._target.display_url} does not permit running a server: the role "
                f"{found['role']!r} may not write to all tables of {self.where}. {self._grants(found)} "
                "A migration that adds tables wants the grant again."
            )
        if found["may_write"] is None:
            self._check_may_create(found)

    def _check_server(self, link: Link) -> None:
        found = link.execute(_FIND_SERVER).fetchone()
        assert found is not None  # the statement always gives one row
        where = f"PostgreSQL at {self._target.display_url}"
        if found["number"] < _LOWEST_VERSION * 10_000:
            raise StorageError(
                f"{where} is version {found['version']}; qml-mp needs {_LOWEST_VERSION} or newer."
            )
        if found["encoding"] != "UTF8":
            raise StorageError(
                f"{where} keeps this database in the encoding {found['encoding']}, which cannot hold every "
                "text. Name one in UTF8: CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0."
            )

    def _check_may_create(self, found: DictRow) -> None:
        """Of a schema without tables, or none. The server's own words name neither what the role lacks nor
        that somebody else may run the migration."""
        may, wanted = found["may_make_tables"], f"SCHEMA {self._quoted}"
        if may is None:
            may, wanted = found["may_make_schema"], f'DATABASE "{found["database"]}"'
        if not may:
            raise StorageError(
                f"PostgreSQL at {self._target.display_url} does not permit making {self.where}: the role "
                f"{found['role']!r} has no right to CREATE there. Grant it "
                f'(GRANT CREATE ON {wanted} TO "{found["role"]}"), or run `qml-mp migrate` once with the URL '
                f"of a role that has it. {self._grants(found)}"
            )

    def _grants(self, found: DictRow) -> str:
        schema, role = f"SCHEMA {self._quoted}", f'"{found["role"]}"'
        return (
            f"What a server needs then is GRANT USAGE ON {schema} TO {role} and "
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN {schema} TO {role}."
        )

    def _create(self, link: Link) -> None:
        self.check_rights(link)
        if not self._find(link)["has_schema"]:
            link.execute(self.statement(_CREATE_SCHEMA))
        link.execute(self.statement(_CREATE_VERSIONS))

    def _find(self, link: Link) -> DictRow:
        found = link.execute(_FIND_VERSIONS, {"schema": self._target.schema}).fetchone()
        assert found is not None  # the statement always gives one row
        return found
