"""Every process: the statements about jobs and claims in SQLite, each with what it does and why so.

Statements that write run inside BEGIN IMMEDIATE, which lets one writer in at a time; that is the
lock behind every "at most once" here. Instants are bound from the injected clock as `:now`.
The index is named where SQLite, which has no statistics here, would take the wider one over all
rows of a state; a statement whose index is missing then fails instead of growing slow unseen.
Lists (queues, servers) are bound as one JSON text, so that a statement stays the same for any number.
"""

from __future__ import annotations

from typing import Final

_JOB: Final = """
    id, method, queue, priority, state, payload, metadata, result, max_retries, max_crashes, timeout_us,
    unique_key, created_at, enqueued_at, run_at, started_at, finished_at, expires_at, duration_us, worker_id,
    server_id, claim_seq, failures, crashes, last_error_type, last_error_message, last_error_traceback,
    reason, cancel_reason
"""

# Schema

# Whether the table of versions is there; asked first, because a SELECT from a missing table is an error.
HAS_VERSIONS: Final = (
    "SELECT count(*) FROM main.sqlite_master WHERE type = 'table' AND name = 'qml_schema_version'"
)

# The version of the schema.
VERSION: Final = "SELECT max(version) FROM main.qml_schema_version"

# Note that a migration was applied.
ADD_VERSION: Final = "INSERT INTO qml_schema_version (version, applied_at) VALUES (:version, :now)"

# Claims

# A queue can be full of methods that this worker does not know, whose backlog must cost nothing. So first
# the methods that wait, by steps from one to the next in an index that has the method before the order;
# then, of those that are known, the head of each; then the best head.
_KNOWN: Final = "(:methods IS NULL OR waits.method IN (SELECT value FROM json_each(:methods)))"

# The best job of all queues. Also asked without the write lock, whether there is anything to claim, so that
# idle workers never hold up one that has work to commit.
BEST_OF_ALL: Final = f"""
    WITH RECURSIVE waits (method) AS (
        SELECT (SELECT method FROM qml_jobs INDEXED BY qml_jobs_enqueued_any
                WHERE state = 'enqueued' ORDER BY method LIMIT 1)
        UNION ALL
        SELECT (SELECT method FROM qml_jobs INDEXED BY qml_jobs_enqueued_any
                WHERE state = 'enqueued' AND method > waits.method ORDER BY method LIMIT 1)
        FROM waits WHERE method IS NOT NULL)
    SELECT head.id
    FROM waits
    JOIN qml_jobs AS head ON head.id = (
        SELECT id FROM qml_jobs INDEXED BY qml_jobs_enqueued_any
        WHERE state = 'enqueued' AND method = waits.method ORDER BY priority DESC, created_at, id LIMIT 1)
    WHERE waits.method IS NOT NULL AND {_KNOWN}
    ORDER BY head.priority DESC, head.created_at, head.id LIMIT 1
"""

# The best job of the served queues, so that a backlog in another queue costs nothing either.
BEST_OF_SERVED: Final = f"""
    WITH RECURSIVE waits (queue, method) AS (
        SELECT served.value,
               (SELECT method FROM qml_jobs INDEXED BY qml_jobs_enqueued
                WHERE state = 'enqueued' AND queue = served.value ORDER BY method LIMIT 1)
        FROM json_each(:queues) AS served
        UNION ALL
        SELECT waits.queue,
               (SELECT method FROM qml_jobs INDEXED BY qml_jobs_enqueued
                WHERE state = 'enqueued' AND queue = waits.queue AND method > waits.method
                ORDER BY method LIMIT 1)
        FROM waits WHERE method IS NOT NULL)
    SELECT head.id
    FROM waits
    JOIN qml_jobs AS head ON head.id = (
        SELECT id FROM qml_jobs INDEXED BY qml_jobs_enqueued
        WHERE state = 'enqueued' AND queue = waits.queue AND method = waits.method
        ORDER BY priority DESC, created_at, id LIMIT 1)
    WHERE waits.method IS NOT NULL AND {_KNOWN}
    ORDER BY head.priority DESC, head.created_at, head.id LIMIT 1
"""

_CLAIM: Final = """
    UPDATE qml_jobs
    SET state = 'processing', claim_seq = claim_seq + 1, worker_id = :worker_id, server_id = :server_id,
        started_at = :now, reason = NULL
    WHERE id = ({head}) AND state = 'enqueued'
      AND (NOT :registered OR EXISTS (SELECT 1 FROM qml_workers WHERE id = :worker_id AND epoch = :epoch))
    RETURNING {job}
"""

# Hand out the best job: choose, number and stamp in one statement under the write lock.
CLAIM_FROM_ALL: Final = _CLAIM.format(head=BEST_OF_ALL, job=_JOB)
CLAIM_FROM_SERVED: Final = _CLAIM.format(head=BEST_OF_SERVED, job=_JOB)

# The end of the job that a claim has chosen, when its row refuses to be claimed.
FAIL_UNCLAIMABLE: Final = """
    UPDATE qml_jobs
    SET state = 'failed', finished_at = :now, expires_at = :expires_at, last_error_type = :type,
        last_error_message = :message, last_error_traceback = NULL
    WHERE id = :id
"""

# What the outcome depends on, read under the lock that its write takes place in.
CANCEL_REASON: Final = "SELECT cancel_reason FROM qml_jobs WHERE id = :id"

# Write an outcome, guarded by the claim's number: a claim that was lost hits no row. The owner is
# cleared with it, so that a row that is not Processing never names a worker.
FINISH: Final = """
    UPDATE qml_jobs
    SET state = :state, result = :result, duration_us = :duration_us, finished_at = :finished_at,
        expires_at = :expires_at, run_at = :run_at, enqueued_at = COALESCE(:enqueued_at, enqueued_at),
        -- Capped: a row that another program has filled to the brim must still be able to end.
        failures = min(failures, 9223372036854775807 - :failures) + :failures,
        crashes = min(crashes, 9223372036854775807 - :crashes) + :crashes, reason = :reason,
        last_error_type = CASE WHEN :has_error THEN :error_type ELSE last_error_type END,
        last_error_message = CASE WHEN :has_error THEN :error_message ELSE last_error_message END,
        last_error_traceback = CASE WHEN :has_error THEN :error_traceback ELSE last_error_traceback END,
        cancel_reason = NULL, worker_id = NULL, server_id = NULL
    WHERE id = :id AND claim_seq = :claim_seq AND state = 'processing'
"""

# Keep an attempt that did not succeed. The pid of a worker that is alive is that of its row.
ADD_ATTEMPT: Final = """
    INSERT INTO qml_attempts (
        job_id, claim_seq, kind, worker, pid, started_at, ended_at, error_type, error_message,
        error_traceback, signal, exit_code, peak_rss_bytes, cpu_s)
    VALUES (
        :id, :claim_seq, :kind, :worker, COALESCE(:pid, (SELECT pid FROM qml_workers WHERE id = :worker)),
        :started_at, :now,
        :error_type, :error_message, :error_traceback, :signal, :exit_code, :peak_rss_bytes, :cpu_s)
    -- Only a row that another program has put there can be in the way; the outcome does not depend on it.
    ON CONFLICT (job_id, claim_seq) DO NOTHING
"""

# How a row stands whose guarded write hit nothing.
PRESENT: Final = f"""
    SELECT {_JOB}, duration_us IS NOT NULL AS succeeded, (
        SELECT kind FROM qml_attempts WHERE job_id = :id AND claim_seq = :claim_seq) AS recorded
    FROM qml_jobs WHERE id = :id
"""

# The running jobs, by owner.
CLAIMS: Final = f"""
    SELECT {_JOB} FROM qml_jobs INDEXED BY qml_jobs_processing
    WHERE state = 'processing' ORDER BY started_at, id
"""
CLAIMS_OF_WORKER: Final = f"""
    SELECT {_JOB} FROM qml_jobs INDEXED BY qml_jobs_processing
    WHERE state = 'processing' AND worker_id = :worker_id ORDER BY started_at, id
"""
CLAIMS_OF_SERVER: Final = f"""
    SELECT {_JOB} FROM qml_jobs INDEXED BY qml_jobs_processing
    WHERE state = 'processing' AND server_id = :server_id ORDER BY started_at, id
"""
STRANDED: Final = f"""
    SELECT {_JOB} FROM qml_jobs INDEXED BY qml_jobs_processing
    WHERE state = 'processing' AND COALESCE(started_at, created_at) < :stale_before
      AND COALESCE(server_id, '') NOT IN (SELECT value FROM json_each(:spared))
    ORDER BY started_at, id
"""

# Cancel a job that waits: it ends here and now.
CANCEL_WAITING: Final = """
    UPDATE qml_jobs
    SET state = 'deleted', finished_at = :now, expires_at = :expires_at, reason = :reason, run_at = NULL
    WHERE id = :id AND state IN ('enqueued', 'scheduled', 'awaiting_retry')
"""

# Ask for the end of a running job; the first reason given stays.
REQUEST_CANCEL: Final = """
    UPDATE qml_jobs SET cancel_reason = COALESCE(cancel_reason, :reason)
    WHERE id = :id AND state = 'processing'
"""

# The cancels that a supervisor has to carry.
CANCEL_REQUESTS: Final = """
    SELECT id, claim_seq, worker_id, cancel_reason FROM qml_jobs INDEXED BY qml_jobs_processing
    WHERE state = 'processing' AND server_id = :server_id AND cancel_reason IS NOT NULL
    ORDER BY started_at, id
"""

# Make due jobs runnable, oldest due first; limited so that one tick holds the lock for a bounded time.
PROMOTE: Final = """
    UPDATE qml_jobs SET state = 'enqueued', enqueued_at = :now, run_at = NULL, reason = NULL
    WHERE id IN (
        SELECT id FROM qml_jobs INDEXED BY qml_jobs_waiting
        WHERE state IN ('scheduled', 'awaiting_retry') AND run_at <= :now
        ORDER BY run_at, id LIMIT :limit)
"""

# After the clock was set back: what ended in the future is due after its delay, counted from now.
HASTEN_RETRIES: Final = """
    UPDATE qml_jobs SET run_at = run_at - (enqueued_at - :now), enqueued_at = :now
    WHERE state = 'awaiting_retry' AND enqueued_at > :now
"""

# When the next job is due.
NEXT_DUE: Final = """
    SELECT min(run_at) FROM qml_jobs INDEXED BY qml_jobs_waiting
    WHERE state IN ('scheduled', 'awaiting_retry')
"""

# Whether there is anything to delete: asked without the write lock.
ANY_EXPIRED: Final = """
    SELECT EXISTS (
        SELECT 1 FROM qml_jobs INDEXED BY qml_jobs_expiring
        WHERE state IN ('succeeded', 'failed', 'deleted') AND expires_at <= :now)
"""

# Delete ended jobs past their time to live, oldest first; limited as promotion is. Attempts go with them.
DELETE_EXPIRED: Final = """
    DELETE FROM qml_jobs WHERE id IN (
        SELECT id FROM qml_jobs INDEXED BY qml_jobs_expiring
        WHERE state IN ('succeeded', 'failed', 'deleted') AND expires_at <= :now
        ORDER BY expires_at LIMIT :limit)
"""
