"""Tests: storages as copies of one that was migrated.

A migration goes through every version that there was. On PostgreSQL that takes some 80 ms of a processor,
more than most tests of the storage take besides; what it ends with is made in a third of that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg

from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.target import parse_target
from tests.postgres_cluster import URL_VARIABLE
from tests.postgres_programs import find_server_programs
from tests.storage.helpers import in_schema

_MODEL = "qml_mp_migrated_model"
"""The schema that is copied."""


class MigratedCopies:
    """Makes storages as a migration leaves them, in SQLite files and in schemas of one PostgreSQL server."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "jobs.db"
        self._copy_schema: Callable[[str], object] | None = None
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
        if self._copy_schema is None:
            self._copy_schema = self._copies_on(url.rpartition("schema=")[0].rstrip("?&"))
        self._copy_schema(parse_target(url).schema)

    def _copies_on(self, server: str) -> Callable[[str], object]:
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
        script = "\n".join(lines)
        connection = self._stack.enter_context(closing(psycopg.connect(server, autocommit=True)))
        return lambda schema: connection.execute(script.replace(_MODEL, schema).encode())


def _migrate(url: str) -> None:
    with closing(open_storage(url)) as storage:
        storage.migrate()
