"""Every process: many jobs at a time."""

from __future__ import annotations

from typing import Final

from qml_mp.core.state import StateName
from qml_mp.storage.bulk_queries import BulkQueries
from qml_mp.storage.sqlite.queries.common import SERVED, asked_for
from qml_mp.storage.sqlite.queries.listing import table_of
from qml_mp.storage.values import JobFilter

# created_at is of the clock of who made it, which may be ahead, or behind, and a job may be stored long after
# it was made: one that nothing has happened to yet is there since enqueued_at. One that has been enqueued
# again since (promote leaves a reason, a claim its number, and who fails a job an error) was made before. One
# that came later and was claimed since cannot be told from it.
_MEANT: Final = """
    FROM {table} AND :until >= CASE
        WHEN claim_seq = 0 AND reason IS NULL AND last_error_type IS NULL THEN enqueued_at
        ELSE min(created_at, enqueued_at) END
      AND (finished_at IS NULL OR finished_at <= :until) AND {filter}
"""
_RAN_THEN: Final = "AND COALESCE(started_at, created_at) <= :until"

# By their ids; the plus keeps SQLite from reading all that are in the state instead.
_GIVEN: Final = """
    id IN (SELECT value FROM json_each(:ids)) AND (finished_at IS NULL OR finished_at <= :until)
"""


def _meant(state: StateName, where: JobFilter, ran_then: bool) -> str:
    ran = _RAN_THEN if ran_then and state is StateName.PROCESSING else ""
    return _MEANT.format(table=table_of(state, by_kind=where.kind is not None), filter=asked_for(where)) + ran


def _count(where: JobFilter, ran_then: bool) -> str:
    return " UNION ALL ".join(
        f"SELECT '{state}' AS state, count(*) AS jobs {_meant(state, where, ran_then)}"
        for state in where.each_state()
    )


def _ids(where: JobFilter, ran_then: bool) -> str:
    parts = " UNION ALL ".join(
        f"SELECT id {_meant(state, where, ran_then)} AND id > :after" for state in where.each_state()
    )
    return f"{parts} ORDER BY id LIMIT :limit"


BULK: Final = BulkQueries(
    count=_count,
    ids=_ids,
    # OR IGNORE: a job whose unique key another has is left out, as the index refuses it.
    retry=f"""
        UPDATE OR IGNORE qml_jobs
        SET state = 'enqueued', enqueued_at = :now, failures = 0, crashes = 0, finished_at = NULL,
            expires_at = NULL, run_at = NULL, reason = NULL, cancel_reason = NULL
        WHERE {_GIVEN} AND +state = 'failed'
        RETURNING id
    """,
    # Limited so that one tick holds the lock for a bounded time.
    fail_unknown=f"""
        UPDATE qml_jobs
        SET state = 'failed', finished_at = :now, expires_at = :now + :ttl, last_error_type = :type,
            last_error_message = :message, last_error_traceback = NULL, last_error_key = :key
        WHERE rowid IN (
            SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_enqueued_any
            WHERE state = 'enqueued' AND method = :method AND enqueued_at <= :waiting_since AND {SERVED}
            LIMIT :limit)
        RETURNING id
    """,
    delete=f"""
        UPDATE qml_jobs
        SET state = 'deleted', finished_at = :now, expires_at = :now + :ttl, reason = :reason, run_at = NULL
        WHERE {_GIVEN} AND +state IN ('enqueued', 'scheduled', 'awaiting_retry', 'succeeded', 'failed')
          AND +state IN (SELECT value FROM json_each(:states))
        RETURNING id
    """,
)
