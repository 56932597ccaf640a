"""Tests of the plans that PostgreSQL makes: what a claim costs must not grow with the table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from qml_mp.storage.database import Values
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.queries import QUERIES
from qml_mp.storage.postgres.schema import Schema
from qml_mp.storage.postgres.target import parse_target
from tests.storage.helpers import in_schema

SCHEMA = "plans"
OWNER = {"worker_id": "w", "server_id": "s", "registered": True, "epoch": 0, "methods": ["none", "work"]}
SEVERAL = {**OWNER, "queues": ["small", "none", "big"]}


@pytest.fixture
def session(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A session beside a storage whose statistics are older than a burst of 20,000 runnable jobs, and of as
    many before them that nobody here can run."""
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        with closing(open_storage(in_schema(postgres_url, SCHEMA))) as storage:
            storage.migrate()
        connection.execute(f"ALTER TABLE {SCHEMA}.jobs SET (autovacuum_enabled = off)")
        _add_jobs(connection, state="succeeded")
        connection.execute(f"VACUUM ANALYZE {SCHEMA}.jobs")
        _add_jobs(connection, state="enqueued")
        _add_jobs(connection, state="enqueued", method="foreign", priority=9)
        connection.execute(
            f"INSERT INTO {SCHEMA}.workers (id, server_id, number, host, pid, started_ticks, started_at)"
            " VALUES ('w', 's', 1, 'h', 1, 1, now())"
        )
        yield connection
        connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


def _add_jobs(connection: psycopg.Connection, *, state: str, method: str = "work", priority: int = 0) -> None:
    connection.execute(
        f"""
        INSERT INTO {SCHEMA}.jobs (id, method, queue, priority, state, created_at)
        SELECT gen_random_uuid()::text, '{method}',
               CASE WHEN n % 100 = 0 THEN 'small' ELSE 'big' END, {priority} + n % 3,
               '{state}', now() - n * interval '1 second'
        FROM generate_series(1, 20000) AS n
        """
    )


@pytest.mark.parametrize(
    ("statement", "params", "index"),
    [
        (QUERIES.claims.from_one.claim, {**OWNER, "queue": "small"}, "jobs_claim_queue"),
        (QUERIES.claims.from_all.claim, OWNER, "jobs_claim_any"),
        (QUERIES.claims.from_all.claim, {**OWNER, "methods": None}, "jobs_claim_any"),
        (
            QUERIES.claims.from_several.claim,
            {**OWNER, "queues": ["small", "none", "big"]},
            "jobs_claim_queue",
        ),
    ],
    ids=["one queue", "all queues", "all methods", "several queues"],
)
def test_a_claim_reads_the_heads_of_its_own_index_whatever_the_statistics_say(
    session: psycopg.Connection, postgres_url: str, statement: str, params: Values, index: str
) -> None:
    explain = b"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + Schema(
        parse_target(in_schema(postgres_url, SCHEMA))
    ).statement(statement)

    plan = [line for (line,) in session.execute(explain, params)]

    scans = [line.strip() for line in plan if "Scan using" in line]
    rows_read = [_rows(line) for line in scans]
    assert any(index in line for line in scans), plan
    assert all(any(name in line for name in (index, "jobs_pkey", "workers_pkey")) for line in scans), plan
    assert max(rows_read) == 1, plan
    # Of all that it sees, it locks one row, and its worker's.
    locks = [line for line in plan if "LockRows" in line]
    assert sum(_rows(line) for line in locks) == 2, plan
    assert all("loops=1)" in line for line in locks if _rows(line)), plan


def _rows(line: str) -> int:
    """How many rows a line of a plan says it gave; PostgreSQL 18 says "1.00"."""
    return int(line.partition("rows=")[2].split(".")[0].split()[0])
