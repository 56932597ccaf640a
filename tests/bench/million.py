"""Benchmark: a storage that holds a great many jobs of every state, as a page has to show them."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import psycopg

from qml_mp.storage.open import open_storage

_SHARES = (
    "CASE WHEN n % 1000 < {succeeded} THEN 'succeeded' WHEN n % 1000 < {failed} THEN 'failed' "
    "WHEN n % 1000 < {deleted} THEN 'deleted' WHEN n % 1000 < {enqueued} THEN 'enqueued' "
    "WHEN n % 1000 < {scheduled} THEN 'scheduled' WHEN n % 1000 < {awaiting_retry} THEN 'awaiting_retry' "
    "WHEN n % 10000 = 9999 THEN 'processing' ELSE 'succeeded' END"
)
MIXED = _SHARES.format(
    succeeded=800, failed=880, deleted=890, enqueued=950, scheduled=980, awaiting_retry=990
)  # fmt: skip
"""The state of the nth job."""

_COLUMNS = (
    "id, method, queue, priority, state, payload, result, created_at, enqueued_at, run_at, started_at, "
    "finished_at, expires_at, duration_us, worker_id, server_id, claim_seq, failures, last_error_type, "
    "last_error_message, last_error_traceback, last_error_key"
)
_HAS_ENDED = "state IN ('succeeded', 'failed', 'deleted')"
_HAS_FAILED = "state IN ('failed', 'awaiting_retry')"
_ERROR = f"""
    CASE WHEN {_HAS_FAILED} THEN 'ValueError' END, CASE WHEN {_HAS_FAILED} THEN 'no file of number ' || n END,
    CASE WHEN {_HAS_FAILED} THEN {{traceback}} END, CASE WHEN {_HAS_FAILED} THEN 'kind-' || (m % 50) END
"""
# Every 10,000th job is of a method that hardly anybody calls.
_METHOD = "CASE WHEN n % 10000 = 7 THEN 'tasks.rare' ELSE 'tasks.method_' || m END"
_VALUES = f"""
    id, {_METHOD}, 'queue-' || (m % 20), n % 3, state,
    '{{{{"path": "/images/' || n || '.png", "width": 800, "note": "as much as a payload has"}}}}',
    CASE WHEN state = 'succeeded' THEN '{{{{"bytes": ' || n || '}}}}' END,
    created_at, created_at, CASE WHEN state IN ('scheduled', 'awaiting_retry') THEN {{later}} END,
    CASE WHEN {_HAS_ENDED} THEN created_at END, CASE WHEN {_HAS_ENDED} THEN created_at + {{second}} END,
    CASE WHEN {_HAS_ENDED} THEN {{later}} END, 1000, 'w-' || (m % 8), 's#1',
    CASE WHEN {_HAS_ENDED} THEN 1 ELSE 0 END, CASE WHEN {_HAS_FAILED} THEN 1 ELSE 0 END, {_ERROR}
"""


def fill(url: str, number: int, *, states: str = MIXED) -> None:
    """So many jobs, a second apart, of 100 methods in 20 queues, with 50 kinds of failures."""
    with closing(open_storage(url)) as storage:
        storage.migrate()
    if url.startswith("postgresql"):
        _fill_postgres(url, number, states)
    else:
        _fill_sqlite(url.removeprefix("sqlite:///"), number, states)


def _fill_sqlite(path: str, number: int, states: str) -> None:
    trace = "replace(hex(zeroblob(400)), '0', 'x')"
    values = _VALUES.format(later="created_at + 86400000000 * 30", second=1000000, traceback=trace)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        connection.execute(
            f"""
            INSERT INTO qml_jobs ({_COLUMNS})
            WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :number),
            timed AS (
                SELECT n, abs(n * 2654435761 % 1000003) % 100 AS m,
                       (strftime('%s', 'now') - :number + n) * 1000000 AS created_at, {states} AS state FROM n
            ), named AS (
                SELECT *, substr(printf('%012x', created_at / 1000), 1, 8) || '-' ||
                       substr(printf('%012x', created_at / 1000), 9, 4) || '-7000-8000-' ||
                       printf('%012x', n) AS id
                FROM timed
            )
            SELECT {values} FROM named
            """,
            {"number": number},
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _fill_postgres(url: str, number: int, states: str) -> None:
    server, _, schema = url.rpartition("schema=")
    later, second = "created_at + interval '30 days'", "interval '1 second'"
    values = _VALUES.format(later=later, second=second, traceback="repeat('x', 800)")
    with psycopg.connect(server.rstrip("?&"), autocommit=True) as connection:
        connection.execute(
            f"""
            INSERT INTO {schema}.jobs ({_COLUMNS})
            WITH timed AS (
                SELECT n, (n * 2654435761 % 1000003 % 100)::int AS m,
                       date_trunc('second', now()) - ({number} - n) * interval '1 second' AS created_at,
                       {states} AS state
                FROM generate_series(1::bigint, {number}) AS n
            ), named AS (
                SELECT *, lpad(to_hex(ms >> 16), 8, '0') || '-' || lpad(to_hex(ms & 65535), 4, '0') ||
                       '-7000-8000-' || lpad(to_hex(n), 12, '0') AS id
                FROM timed, LATERAL (SELECT (extract(epoch FROM created_at) * 1000)::bigint) AS t (ms)
            )
            SELECT {values} FROM named
            """.encode()
        )
        connection.execute(f"VACUUM ANALYZE {schema}.jobs".encode())
