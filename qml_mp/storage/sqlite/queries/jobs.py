"""Every process: jobs as rows. What may run in a caller's own transaction names the schema `main`."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.job_rows import JOB_COLUMNS as JOB
from qml_mp.storage.job_rows import released_columns
from qml_mp.storage.queries import JobQueries
from qml_mp.storage.sqlite.instants import FIRST_US
from qml_mp.storage.sqlite.queries.common import ANY_LIMIT, EARLY_CALL, EARLY_SPAN, ENDED

INSERT: Final = """
    INSERT INTO main.qml_jobs (
        id, method, queue, priority, payload, metadata, max_retries, max_crashes, timeout_us, created_at,
        unique_key, run_at, reason, recurring_id, fire_at, state, enqueued_at)
    VALUES {rows}
    -- A key or firing that is taken, or this very job, stored before a reply was lost.
    ON CONFLICT DO NOTHING
"""
"""The columns of `storable.NewRow`, the state, and now."""

NEW_ROW: Final = f"({', '.join('?' * 17)})"
"""One of the rows of `INSERT`."""

INSERT_PLAIN: Final = """
    INSERT INTO main.qml_jobs (
        id, method, queue, priority, payload, metadata, max_retries, max_crashes, timeout_us, created_at,
        enqueued_at, state)
    VALUES {rows}
    ON CONFLICT DO NOTHING
"""
"""Without what most jobs leave out: a column that is named costs time even when it is NULL."""

NEW_PLAIN_ROW: Final = f"({', '.join('?' * 11)}, 'enqueued')"
"""One of the rows of `INSERT_PLAIN`."""

MOST_COUNTED: Final = 100

RUNNABLE: Final = f"""
    SELECT count(*) FROM (
        SELECT 1 FROM qml_jobs WHERE state = 'enqueued'
        LIMIT iif({ANY_LIMIT}, 1, {MOST_COUNTED}))
"""
"""How many jobs can run now, at most `MOST_COUNTED`: whoever asks wants to know whether few workers do. One
while there are limits, which may hold back the others: how many they let begin is looked at by a loop."""

# The job of a failure that is to be told stays until it was; nobody makes a call that has been due for a day.
_EXPIRED: Final = f"""
    {ENDED} AND expires_at <= :now AND NOT EXISTS (
        SELECT 1 FROM qml_failure_callbacks AS call
        WHERE call.job_id = qml_jobs.id AND call.due_at > :now - 86400000000)
"""

_UNSPARED: Final = "id NOT IN (SELECT value FROM json_each(:spared))"

# Limited so that one tick holds the lock for a bounded time.
_EXPIRED_FIRST: Final = f"""
    SELECT id FROM qml_jobs INDEXED BY qml_jobs_expiring
    WHERE {_EXPIRED} AND {_UNSPARED}
    ORDER BY expires_at LIMIT :limit
"""

_IS_DUE: Final = "state IN ('scheduled', 'awaiting_retry') AND run_at <= :now"
_DUE_FIRST: Final = f"""
    SELECT id FROM qml_jobs INDEXED BY qml_jobs_waiting
    WHERE {_IS_DUE} AND {_UNSPARED}
    ORDER BY run_at, id LIMIT :limit
"""
# Changes of many jobs ask for the reason.
_PROMOTE: Final = """
    UPDATE qml_jobs SET state = 'enqueued', enqueued_at = :now, run_at = NULL, reason = 'due' WHERE id IN
"""

# The first conditions are those of the indexes, word for word. That of failures has the instant too: no row
# is read.
_EARLY_RETRY: Final = """
    FROM qml_jobs INDEXED BY qml_jobs_failures
    WHERE (state = 'failed' OR state = 'awaiting_retry') AND state = 'awaiting_retry' AND enqueued_at > :now
"""
_EARLY_FIRING: Final = """
    FROM qml_jobs INDEXED BY qml_jobs_of_template
    WHERE recurring_id IS NOT NULL AND state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry')
      AND state = 'scheduled' AND fire_at IS NOT NULL AND enqueued_at > :now
"""
# An instant after all time, which another program has written, leaves no delay.
_SOONER: Final = "run_at = :now + max(run_at - enqueued_at, 0), enqueued_at = :now"

JOBS: Final = JobQueries(
    holders="""
        SELECT id, unique_key, 0 AS is_live FROM main.qml_jobs WHERE id IN (SELECT value FROM json_each(:ids))
        UNION ALL
        -- The condition is that of the unique index, word for word.
        SELECT id, unique_key, 1 FROM main.qml_jobs
        WHERE unique_key IN (SELECT value FROM json_each(:keys)) AND unique_key IS NOT NULL
          AND state NOT IN ('succeeded', 'failed', 'deleted')
    """,
    lock_replaced=None,  # the write lock is held
    replace="""
        UPDATE main.qml_jobs
        SET state = 'deleted', finished_at = :now, expires_at = :now + :ttl, reason = :reason, run_at = NULL
        WHERE id = :id AND state IN ('enqueued', 'scheduled', 'awaiting_retry')
    """,
    hold_key="""
        INSERT INTO main.qml_locks AS held (resource, owner, expires_at)
        VALUES (:resource, :owner, :now + :ttl)
        ON CONFLICT (resource) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
        WHERE held.owner = excluded.owner OR held.expires_at <= :now
    """,
    key_holder="SELECT owner FROM main.qml_locks WHERE resource = :resource",
    hand_key="UPDATE main.qml_locks SET owner = :to WHERE resource = :resource AND owner = :owner",
    free_key="DELETE FROM main.qml_locks WHERE resource = :resource AND owner = :owner",
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
    stranded=f"""
        SELECT {released_columns()} FROM qml_jobs INDEXED BY qml_jobs_processing
        WHERE state = 'processing' AND COALESCE(started_at, created_at) < :stale_before
          AND COALESCE(server_id, '') NOT IN (SELECT value FROM json_each(:spared))
        ORDER BY started_at, id
    """,
    next_due=f"""
        SELECT max(min(run_at), {FIRST_US}) AS due_at, :now AS now FROM qml_jobs INDEXED BY qml_jobs_waiting
        WHERE state IN ('scheduled', 'awaiting_retry') AND {_UNSPARED}
    """,
    promote=f"{_PROMOTE} ({_DUE_FIRST})",
    due=_DUE_FIRST,
    promote_these=f"{_PROMOTE} (SELECT value FROM json_each(:ids)) AND {_IS_DUE}",
    any_from_the_future=f"""
        SELECT 1 {_EARLY_RETRY} UNION ALL SELECT 1 {_EARLY_FIRING}
        UNION ALL SELECT 1 FROM qml_failure_callbacks WHERE {EARLY_CALL}
        UNION ALL SELECT 1 FROM qml_lost_attempts WHERE {EARLY_SPAN} LIMIT 1
    """,
    hasten_retries=f"UPDATE qml_jobs SET {_SOONER} WHERE rowid IN (SELECT rowid {_EARLY_RETRY})",
    hasten_spread=f"UPDATE qml_jobs SET {_SOONER} WHERE rowid IN (SELECT rowid {_EARLY_FIRING})",
    state="SELECT state FROM main.qml_jobs WHERE id = :id",
    lock_state="SELECT state FROM qml_jobs WHERE id = :id",  # the write lock is held
    request_cancel="""
        UPDATE qml_jobs SET cancel_reason = COALESCE(cancel_reason, :reason)
        WHERE id = :id AND state = 'processing'
    """,
    cancel_requests="""
        SELECT id, claim_seq, method, failures, crashes, worker_id, cancel_reason
        FROM qml_jobs INDEXED BY qml_jobs_processing
        WHERE state = 'processing' AND server_id = :server_id AND cancel_reason IS NOT NULL
        ORDER BY started_at, id
    """,
    note_progress="""
        UPDATE qml_jobs SET progress = :progress
        WHERE id = :id AND claim_seq = :claim_seq AND state = 'processing'
    """,
    progress="""
        SELECT id, claim_seq, progress FROM qml_jobs
        WHERE id IN (SELECT value FROM json_each(:ids)) AND progress IS NOT NULL
    """,
    any_expired=f"""
        SELECT 1 FROM qml_jobs INDEXED BY qml_jobs_expiring
        WHERE {_EXPIRED} AND {_UNSPARED} LIMIT 1
    """,
    delete_expired=f"DELETE FROM qml_jobs WHERE id IN ({_EXPIRED_FIRST})",
    expired=_EXPIRED_FIRST,
    # Each is looked up by its id, and not among all that have ended.
    delete_these=f"""
        DELETE FROM qml_jobs WHERE id IN (
            SELECT value FROM json_each(:ids) AS these
            WHERE EXISTS (SELECT 1 FROM qml_jobs WHERE id = these.value AND {_EXPIRED}))
    """,
)
