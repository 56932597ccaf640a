"""Tests: a PostgreSQL server of its own that asks every role but its first one for a password."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from urllib.parse import urlsplit

import psycopg

from tests.postgres_cluster import throwaway_cluster

WITHIN_S = 20.0
WRITE_RULES = """
DO $$ BEGIN
    EXECUTE format('COPY (VALUES (%L), (%L)) TO %L', 'host all {trusted} all trust',
                   'host all all all scram-sha-256', current_setting('hba_file'));
END $$
"""


@contextmanager
def cluster_that_asks() -> Iterator[psycopg.Connection]:
    """Serve it for the length of the block; yields a connection of its superuser."""
    with throwaway_cluster() as url, closing(psycopg.connect(url, autocommit=True)) as admin:
        admin.execute(WRITE_RULES.format(trusted=urlsplit(url).username))
        loaded = "SELECT pg_conf_load_time()"
        before = admin.execute(loaded).fetchone()
        admin.execute("SELECT pg_reload_conf()")
        deadline = time.monotonic() + WITHIN_S
        while admin.execute(loaded).fetchone() == before:
            assert time.monotonic() < deadline, "the server did not read its rules"
        yield admin


def url_of(admin: psycopg.Connection, login: str, *, database: str = "postgres") -> str:
    """The URL by which the login reaches the server."""
    return f"postgresql://{login}@{admin.info.host}:{admin.info.port}/{database}"
