"""Every process: many jobs at a time."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.bulk_queries import BulkQueries
from qml_mp.storage.sqlite.queries.common import SERVED

# By their ids; the plus keeps SQLite from reading all that are in the state instead.
_GIVEN: Final = """
    id IN (SELECT value FROM json_each(:ids)) AND (finished_at IS NULL OR finished_at <= :until)
"""


BULK: Final = BulkQueries(
    # OR IGNORE: a job whose unique key another has is left out, as the index refuses it.
    retry=f"""
        UPDATE OR IGNORE qml_jobs
        SET state = 'enqueued', enqueued_at = :now, failures = 0, crashes = 0, finished_at = NULL,
            expires_at = NULL, run_at = NULL, reason = NULL, cancel_reason = NULL
        WHERE {_GIVEN} AND +state = 'failed'
        RETURNING id
    """,
    # From one queue to the next, each in the index that has all that is asked for: no row is read. Limited,
    # as what is found is failed in one commit.
    unknown=f"""
        WITH RECURSIVE waits (queue) AS (
            SELECT min(queue) FROM qml_jobs INDEXED BY qml_jobs_enqueued WHERE state = 'enqueued'
            UNION ALL
            SELECT (SELECT min(queue) FROM qml_jobs INDEXED BY qml_jobs_enqueued
                    WHERE state = 'enqueued' AND queue > waits.queue)
            FROM waits WHERE queue IS NOT NULL)
        SELECT job.id
        FROM (SELECT queue FROM waits WHERE {SERVED}) AS served
        CROSS JOIN qml_jobs AS job INDEXED BY qml_jobs_enqueued
        WHERE job.state = 'enqueued' AND job.queue = served.queue AND job.method = :method
          AND job.enqueued_at <= :waiting_since
        LIMIT :limit
    """,
    fail_unknown="""
        UPDATE qml_jobs
        SET state = 'failed', finished_at = :now, expires_at = :now + :ttl, last_error_type = :type,
            last_error_message = :message, last_error_traceback = NULL, last_error_key = :key
        WHERE id IN (SELECT value FROM json_each(:ids)) AND +state = 'enqueued'
          AND enqueued_at <= :waiting_since
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
