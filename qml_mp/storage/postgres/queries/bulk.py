"""Every process: many jobs at a time."""

from __future__ import annotations

from typing import Final

from qml_mp.core.job import MAX_METHOD_CHARS
from qml_mp.core.state import StateName
from qml_mp.storage.bulk_queries import BulkQueries
from qml_mp.storage.postgres.queries.common import METHOD_NAME, SERVED, TELL_IF_ANY, asked_for
from qml_mp.storage.postgres.queries.listing import condition_of
from qml_mp.storage.postgres.queries.telling import told_to_waiters
from qml_mp.storage.values import JobFilter

# created_at is of the clock of who made it, which may be ahead, or behind, and a job may be stored long after
# it was made: one that nothing has happened to yet is there since enqueued_at. One that has been enqueued
# again since (promote leaves a reason, a claim its number, and who fails a job an error) was made before. One
# that came later and was claimed since cannot be told from it.
_MEANT: Final = """
    FROM {{s}}.jobs
    WHERE {condition} AND %(until)s >= CASE
        WHEN claim_seq = 0 AND reason IS NULL AND last_error_type IS NULL
        THEN coalesce(enqueued_at, created_at)
        ELSE least(created_at, enqueued_at) END
      AND (finished_at IS NULL OR finished_at <= %(until)s) AND {filter}
"""
_RAN_THEN: Final = "AND coalesce(started_at, created_at) <= %(until)s"

# Locked in the order of their ids, as everybody locks several jobs and waits for them, so that no two wait
# for each other. PostgreSQL looks again at a row whose lock it has waited for.
_HELD: Final = """
    SELECT id, unique_key FROM {s}.jobs
    WHERE id = ANY(%(ids)s::text[]) AND (finished_at IS NULL OR finished_at <= %(until)s)
"""
_LOCK: Final = "ORDER BY id FOR UPDATE"


def _count(where: JobFilter, ran_then: bool) -> str:
    return " UNION ALL ".join(
        f"SELECT '{state}' AS state, count(*) AS jobs {_meant(state, where, ran_then)}"
        for state in where.each_state()
    )


def _ids(where: JobFilter, ran_then: bool) -> str:
    parts = " UNION ALL ".join(
        f"SELECT id {_meant(state, where, ran_then)} AND id > %(after)s" for state in where.each_state()
    )
    return f"SELECT id FROM ({parts}) AS meant ORDER BY id LIMIT %(limit)s"


def _meant(state: StateName, where: JobFilter, ran_then: bool) -> str:
    ran = _RAN_THEN if ran_then and state is StateName.PROCESSING else ""
    return _MEANT.format(condition=condition_of(state), filter=asked_for(where)) + ran


BULK: Final = BulkQueries(
    count=_count,
    ids=_ids,
    # Of several that have one key the first.
    retry=f"""
        WITH held AS MATERIALIZED (
            {_HELD} AND state = 'failed' {_LOCK}
        ), free AS (
            SELECT DISTINCT ON (unique_key, CASE WHEN unique_key IS NULL THEN id END) id FROM held
            WHERE unique_key IS NULL OR NOT EXISTS (
                SELECT FROM {{s}}.jobs AS other
                WHERE other.unique_key = held.unique_key
                  AND other.state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry'))
            ORDER BY unique_key, CASE WHEN unique_key IS NULL THEN id END, id
        ), retried AS (
            UPDATE {{s}}.jobs AS j
            SET state = 'enqueued', enqueued_at = now(), failures = 0, crashes = 0, expires_at = NULL,
                finished_at = NULL, run_at = NULL, reason = NULL, cancel_reason = NULL
            FROM free WHERE j.id = free.id
            RETURNING j.id
        ), told AS MATERIALIZED (
            SELECT {TELL_IF_ANY} FROM retried
        )
        SELECT id, told FROM retried CROSS JOIN told
    """,
    # SKIP LOCKED: what is claimed in this moment is known to somebody.
    fail_unknown=f"""
        WITH failed AS (
            UPDATE {{s}}.jobs
            SET state = 'failed', finished_at = now(), expires_at = now() + %(ttl)s::interval,
                last_error_type = %(type)s, last_error_message = %(message)s, last_error_traceback = NULL,
                last_error_key = %(key)s
            WHERE id = ANY(ARRAY(
                SELECT j.id FROM {{s}}.jobs AS j
                WHERE j.state = 'enqueued' AND j.id <> ''
                  AND {METHOD_NAME} = left(%(method)s, {MAX_METHOD_CHARS + 1}) COLLATE "C"
                  AND j.method = %(method)s
                  AND j.enqueued_at <= %(waiting_since)s AND {SERVED}
                LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
            RETURNING id
        ), told AS MATERIALIZED (
            SELECT {told_to_waiters("SELECT id FROM failed")} AS told_waiters
        )
        SELECT id, told_waiters FROM failed CROSS JOIN told
    """,
    delete=f"""
        WITH held AS MATERIALIZED (
            {_HELD} AND state IN ('enqueued', 'scheduled', 'awaiting_retry', 'succeeded', 'failed')
              AND state = ANY(%(states)s::text[]) {_LOCK}
        ), deleted AS (
            UPDATE {{s}}.jobs AS j
            SET state = 'deleted', reason = %(reason)s, finished_at = now(),
                expires_at = now() + %(ttl)s::interval, run_at = NULL
            FROM held WHERE j.id = held.id
            RETURNING j.id
        ), told AS MATERIALIZED (
            SELECT {told_to_waiters("SELECT id FROM deleted")} AS told_waiters
        )
        SELECT id, told_waiters FROM deleted CROSS JOIN told
    """,
)
