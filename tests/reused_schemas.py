"""Tests: schemas of tests that are over, emptied for others.

What still runs of such a test finds no schema of the name that it knows. One that somebody still uses, whose
tables are not as they were made, or that has grown by what was in it, is left alone.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import Any, LiteralString

import psycopg
from psycopg import errors, sql

_MOST_BYTES = 10 * 8192
"""Of a table or an index. The planner takes what is smaller, and was never analyzed, for as large as that."""
_SHAPE = """
    WITH mine AS (SELECT * FROM pg_class WHERE relnamespace = %(schema)s::regnamespace)
    SELECT md5(string_agg(line, ' ' ORDER BY line)) FROM (
        SELECT concat_ws(' ', nspowner, nspacl) FROM pg_namespace WHERE oid = %(schema)s::regnamespace
        UNION ALL
        SELECT concat_ws(' ', relname, relkind, relpersistence, relowner, relacl, reloptions, relnatts,
            relchecks, relhasrules, relhastriggers, relrowsecurity, reltuples, relpages)
        FROM mine
        UNION ALL
        SELECT concat_ws(' ', relname, attname, attnum, atttypid, attnotnull, atthasdef, attacl)
        FROM mine JOIN pg_attribute ON attrelid = mine.oid
        UNION ALL
        SELECT concat_ws(' ', relname, conname, convalidated)
        FROM mine JOIN pg_constraint ON conrelid = mine.oid
        UNION ALL
        SELECT concat_ws(' ', relname, indisvalid, indisready)
        FROM mine JOIN pg_index ON indexrelid = mine.oid
        UNION ALL
        SELECT concat_ws(' ', proname, prosrc) FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace
    ) AS lines (line)
"""
_LARGEST = "SELECT max(pg_relation_size(oid)) FROM pg_class WHERE relnamespace = %(schema)s::regnamespace"


class ReusedSchemas:
    """Those of one server that all were made alike."""

    def __init__(self, connection: psycopg.Connection, *, made: str, rows: str) -> None:
        """`made`: one that nobody has used yet. `rows`: the statements that fill it, which name it."""
        self._connection = connection
        self._made = made
        self._rows = rows
        self._shape = self._ask(_SHAPE, made)
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [made])
        self._tables = [name for (name,) in tables]
        self._free: deque[str] = deque()

    def add(self, schema: str) -> None:
        """Its test is over."""
        self._free.append(schema)

    def take(self, schema: str) -> bool:
        """Have one under this name; False: there is none, and nothing has the name."""
        while self._free:
            if self._empty(self._free.popleft(), schema):
                return True
        return False

    def _empty(self, old: str, new: str) -> bool:
        tables = sql.SQL(", ").join(sql.Identifier(new, table) for table in self._tables)
        rename = sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new))
        lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(tables)
        delete = sql.SQL("DELETE FROM {}")
        empty = sql.SQL(";").join(delete.format(sql.Identifier(new, table)) for table in self._tables)
        unusable = errors.LockNotAvailable, errors.UndefinedTable, errors.InvalidSchemaName
        with suppress(*unusable), self._connection.transaction():
            self._connection.execute("SET LOCAL lock_timeout = '1s'")
            self._connection.execute(rename)
            self._connection.execute(lock)
            if self._ask(_SHAPE, new) != self._shape or self._ask(_LARGEST, new) > _MOST_BYTES:
                raise psycopg.Rollback
            self._connection.execute(empty)
            self._connection.execute(self._rows.replace(self._made, new).encode())
            return True
        return False

    def _ask(self, what: LiteralString, schema: str) -> Any:
        """The one value."""
        row = self._connection.execute(what, {"schema": schema}).fetchone()
        assert row is not None
        return row[0]
