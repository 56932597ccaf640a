"""Tests: PostgreSQL schemas as copies of one that was migrated.

A migration goes through every version that there was, on a connection of its own: some 80 ms of a processor,
more than most tests of the storage take besides. What it ends with is made in a third of that.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg

from qml_mp.storage.open import open_storage
from tests.postgres_cluster import URL_VARIABLE
from tests.postgres_programs import find_server_programs
from tests.storage.helpers import in_schema

_MODEL = "qml_mp_migrated_model"
"""The schema that is copied."""


@contextmanager
def schema_copies(server: str) -> Iterator[Callable[[str], None]]:
    """Makes schemas of a given name, each as a migration leaves it. Somebody's own server may be of another
    version than the programs that are found here, and one may have no `pg_dump`: then each is migrated."""
    program = None if os.environ.get(URL_VARIABLE) else find_server_programs().folder / "pg_dump"
    if program is None or not os.access(program, os.X_OK):
        yield lambda schema: _migrate(in_schema(server, schema))
        return
    _migrate(in_schema(server, _MODEL))
    dumped = subprocess.run(
        [program, "--inserts", "--no-owner", "--schema", _MODEL, server],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    script = "\n".join(
        line for line in dumped.splitlines() if line and not line.startswith(("--", "\\"))
    )  # the latter are for psql
    with psycopg.connect(server, autocommit=True) as connection:
        yield lambda schema: _run(connection, script.replace(_MODEL, schema))


def _migrate(url: str) -> None:
    with closing(open_storage(url)) as storage:
        storage.migrate()


def _run(connection: psycopg.Connection, script: str) -> None:
    connection.execute(script.encode())
