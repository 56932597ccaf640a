"""Every process: many jobs at a time."""

from __future__ import annotations

from typing import Final

from qml_mp.core.job import MAX_METHOD_CHARS
from qml_mp.storage.bulk_queries import BulkQueries
from qml_mp.storage.postgres.queries.common import METHOD_NAME, SERVED, TELL_IF_ANY
from qml_mp.storage.postgres.queries.telling import told_to_waiters

# Locked in the order of their ids, as everybody locks several jobs and waits for them, so that no two wait
# for each other. PostgreSQL looks again at a row whose lock it has waited for.
_HELD: Final = """
    SELECT id, unique_key FROM {s}.jobs
    WHERE id = ANY(%(ids)s::text[]) AND (finished_at IS NULL OR finished_at <= %(until)s)
"""
_LOCK: Final = "ORDER BY id FOR UPDATE"


BULK: Final = BulkQueries(
    # Of several that have one key the first. The state is written so that no index has a part in it: by that
    # of failures, a plan that was made when they were few would read all of them.
    retry=f"""
        WITH held AS MATERIALIZED (
            {_HELD} AND state || '' = 'failed' {_LOCK}
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
            WHERE j.id = ANY(ARRAY(SELECT id FROM free))
            RETURNING j.id
        ), told AS MATERIALIZED (
            SELECT {TELL_IF_ANY} FROM retried
        )
        SELECT id, told FROM retried CROSS JOIN told
    """,
    unknown=f"""
        SELECT j.id FROM {{s}}.jobs AS j
        WHERE j.state = 'enqueued' AND j.id <> ''
          AND {METHOD_NAME} = left(%(method)s, {MAX_METHOD_CHARS + 1}) COLLATE "C"
          AND j.method = %(method)s AND j.enqueued_at <= %(waiting_since)s AND {SERVED}
        LIMIT %(limit)s
    """,
    # SKIP LOCKED: what is claimed in this moment is known to somebody.
    fail_unknown=f"""
        WITH failed AS (
            UPDATE {{s}}.jobs
            SET state = 'failed', finished_at = now(), expires_at = now() + %(ttl)s::interval,
                last_error_type = %(type)s, last_error_message = %(message)s, last_error_traceback = NULL,
                last_error_key = %(key)s
            WHERE id = ANY(ARRAY(
                SELECT id FROM {{s}}.jobs
                WHERE id = ANY(%(ids)s::text[]) AND state = 'enqueued' AND enqueued_at <= %(waiting_since)s
                FOR UPDATE SKIP LOCKED))
            RETURNING id
        ), told AS MATERIALIZED (
            SELECT {told_to_waiters("ARRAY(SELECT id FROM failed)")} AS told_waiters
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
            WHERE j.id = ANY(ARRAY(SELECT id FROM held))
            RETURNING j.id
        ), told AS MATERIALIZED (
            SELECT {told_to_waiters("ARRAY(SELECT id FROM deleted)")} AS told_waiters
        )
        SELECT id, told_waiters FROM deleted CROSS JOIN told
    """,
)
