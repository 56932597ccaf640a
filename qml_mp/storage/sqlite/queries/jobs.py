"""Every process: jobs as rows. What may run in a caller's own transaction names the schema `main`."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.queries import JobQueries
from qml_mp.storage.sqlite.queries.columns import JOB

JOBS: Final = JobQueries(
    insert="""
        INSERT INTO main.qml_jobs (
            id, method, queue, priority, state, payload, metadata, max_retries, max_crashes, timeout_us,
            unique_key, created_at, enqueued_at, run_at, reason, recurring_id, fire_at)
        VALUES (
            :id, :method, :queue, :priority, iif(:run_at > :now, 'scheduled', 'enqueued'), :payload,
            :metadata, :max_retries, :max_crashes, :timeout_us, :unique_key, :created_at, :now,
            iif(:run_at > :now, :run_at, NULL), iif(:run_at > :now, :reason, NULL), :recurring_id, :fire_at)
        -- A key or firing that is taken, or this very job, stored before a reply was lost.
        ON CONFLICT DO NOTHING
    """,
    holders="""
        SELECT id, unique_key, 0 AS is_live FROM main.qml_jobs WHERE id IN (SELECT value FROM json_each(:ids))
        UNION ALL
        -- The condition is that of the unique index, word for word.
        SELECT id, unique_key, 1 FROM main.qml_jobs
        WHERE unique_key IN (SELECT value FROM json_each(:keys)) AND unique_key IS NOT NULL
          AND state NOT IN ('succeeded', 'failed', 'deleted')
    """,
    get=f"SELECT {JOB} FROM qml_jobs WHERE id = :id",
    delete=f"""
        UPDATE qml_jobs
        SET state = 'deleted', finished_at = :now, expires_at = :now + :ttl, reason = :reason, run_at = NULL
        WHERE id = :id AND state IN ('enqueued', 'scheduled', 'awaiting_retry', 'succeeded', 'failed')
        RETURNING {JOB}
    """,
    retry=f"""
        UPDATE qml_jobs
        SET state = 'enqueued', enqueued_at = :now, failures = 0, crashes = 0, finished_at = NULL,
            expires_at = NULL, run_at = NULL, reason = NULL, cancel_reason = NULL
        WHERE id = :id AND state = 'failed'
        RETURNING {JOB}
    """,
)
