"""Tests: storages as copies of one that was migrated.

A migration goes through every version that there was. On PostgreSQL that takes some 80 ms of a processor,
more than most tests of the storage take besides. What it ends with is made in half of that, and had from a
test that is over in a twentieth.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg

from qml_mp.storage.postgres.target import parse_target
from tests.postgres_cluster import URL_VARIABLE
from tests.postgres_programs import find_server_programs
from tests.reused_schemas import ReusedSchemas
from tests.storage.helpers import in_schema, open_patiently

_MODEL = "qml_mp_migrated_model"
"""The schema that is copied."""
_COPY = "qml_mp_copied_model"
"""The first copy, which shows how all are made."""


class MigratedCopies:
    """Makes storages as a migration leaves them, in SQLite files and in schemas of one PostgreSQL server."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "jobs.db"
        self._make_schema: Callable[[str], object] | None = None
        self._reused: ReusedSchemas | None = None
        self._stack = ExitStack()

    def close(self) -> None:
        self._stack.close()

    def make(self, url: str) -> None:
        """One at the URL, where there is nothing yet."""
        if url.startswith("sqlite:///"):
            if not self._file.exists():
                _migrate(f"sqlite:///{self._file}")
                assert os.listdir(self._file.parent) == [self._file.name]  # all of it is in the file
            shutil.copy(self._file, url.removeprefix("sqlite:///"))
            return
        if self._make_schema is None:
            self._make_schema = self._made_on(url.rpartition("schema=")[0].rstrip("?&"))
        self._make_schema(parse_target(url).schema)

    def take_back(self, url: str) -> None:
        """The test of this one is over: another may have it, once it is empty."""
        if self._reused is not None and not url.startswith("sqlite:///"):
            self._reused.add(parse_target(url).schema)

    def _made_on(self, server: str) -> Callable[[str], object]:
        """Somebody's own server may be of another version than the programs that are found here, and there
        may be no `pg_dump`: then each schema is migrated."""
        program = None if os.environ.get(URL_VARIABLE) else find_server_programs().folder / "pg_dump"
        if program is None or not os.access(program, os.X_OK):
            return lambda schema: _migrate(in_schema(server, schema))
        _migrate(in_schema(server, _MODEL))
        dumped = subprocess.run(
            [program, "--inserts", "--no-owner", "--schema", _MODEL, server],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        # Without what is a comment, or for psql.
        lines = [line for line in dumped.splitlines() if line and not line.startswith(("--", "\\"))]
        connection = self._stack.enter_context(closing(psycopg.connect(server, autocommit=True)))

        def copy(schema: str) -> None:
            connection.execute("\n".join(lines).replace(_MODEL, schema).encode())

        copy(_COPY)
        rows = "\n".join(line for line in lines if line.startswith("INSERT"))
        self._reused = reused = ReusedSchemas(connection, made=_COPY, rows=rows.replace(_MODEL, _COPY))
        reused.add(_COPY)

        def make(schema: str) -> None:
            if not reused.take(schema):
                copy(schema)

        return make


def _migrate(url: str) -> None:
    """On PostgreSQL this may be the first of all to connect to a server that has just been made."""
    with closing(open_patiently(url)) as storage:
        storage.migrate()
