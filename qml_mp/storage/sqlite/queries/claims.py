"""Every process: claims and their ends."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.queries import ChoiceQueries, ClaimQueries
from qml_mp.storage.rows import ATTEMPT_COLUMNS
from qml_mp.storage.rows import JOB_COLUMNS as JOB


def _from(index: str, *, start: str, same: str) -> ChoiceQueries:
    """The choice of a claim: numbered and stamped in the one statement that chooses, under the write lock.

    A queue can be full of methods that this worker does not know, whose backlog must cost nothing. So first
    the methods that wait, by steps from one to the next in an index that has the method before the order;
    then, of those that are known, the head of each; then the best head. `best` is also asked without the
    write lock, whether there is anything to claim, so that idle workers never hold up one that has work to
    commit.
    """
    entries = f"FROM qml_jobs INDEXED BY {index} WHERE state = 'enqueued'"
    best = f"""
        WITH RECURSIVE waits (queue, method) AS (
            {start.format(entries=entries)}
            UNION ALL
            SELECT queue, (SELECT method {entries} {same} AND method > waits.method ORDER BY method LIMIT 1)
            FROM waits WHERE method IS NOT NULL)
        SELECT head.id AS id
        FROM waits
        JOIN qml_jobs AS head ON head.id = (
            SELECT id {entries} {same} AND method = waits.method
            ORDER BY priority DESC, created_at, id LIMIT 1)
        WHERE waits.method IS NOT NULL
          AND (:methods IS NULL OR waits.method IN (SELECT value FROM json_each(:methods)))
        ORDER BY head.priority DESC, head.created_at, head.id LIMIT 1
    """
    claim = f"""
        {_HAND_OUT}
        WHERE id = ({best}) AND state = 'enqueued'
          AND (NOT :registered OR EXISTS (
              SELECT 1 FROM qml_workers WHERE id = :worker_id AND epoch = :epoch))
        RETURNING {JOB}
    """
    return ChoiceQueries(best=best, claim=claim)


_HAND_OUT: Final = """
    UPDATE qml_jobs
    SET state = 'processing', claim_seq = claim_seq + 1, worker_id = :worker_id, server_id = :server_id,
        started_at = :now, reason = NULL
"""


_PROCESSING: Final = f"SELECT {JOB} FROM qml_jobs INDEXED BY qml_jobs_processing WHERE state = 'processing'"
_OF_SERVER: Final = f"{_PROCESSING} AND server_id = :server_id ORDER BY started_at, id"

_FROM_ALL: Final = _from(
    "qml_jobs_enqueued_any",
    start="SELECT NULL, (SELECT method {entries} ORDER BY method LIMIT 1)",
    same="",
)
# Of the served queues alone, so that a backlog in another queue costs nothing either.
_FROM_SERVED: Final = _from(
    "qml_jobs_enqueued",
    start="SELECT value, (SELECT method {entries} AND queue = served.value ORDER BY method LIMIT 1) "
    "FROM json_each(:queues) AS served",
    same="AND queue = waits.queue",
)

CLAIMS: Final = ClaimQueries(
    from_all=_FROM_ALL,
    from_one=_FROM_SERVED,
    from_several=_FROM_SERVED,
    claim_this=f"{_HAND_OUT} WHERE id = :id",
    fail_unclaimable="""
        UPDATE qml_jobs
        SET state = 'failed', finished_at = :now, expires_at = :now + :ttl, last_error_type = :type,
            last_error_message = :message, last_error_traceback = NULL
        WHERE id = :id
    """,
    all=f"{_PROCESSING} ORDER BY started_at, id",
    of_worker=f"{_PROCESSING} AND worker_id = :worker_id ORDER BY started_at, id",
    of_server=_OF_SERVER,
    lock_of_server=_OF_SERVER,  # the write lock is held
    lock="""
        SELECT cancel_reason FROM qml_jobs
        WHERE id = :id AND claim_seq = :claim_seq AND state = 'processing'
    """,
    # The owner is cleared too, so that a row that is not Processing never names a worker.
    finish="""
        UPDATE qml_jobs
        SET state = :state, result = :result, duration_us = :duration_us,
            enqueued_at = iif(:waits, :now, enqueued_at), finished_at = iif(:waits, NULL, :now),
            run_at = :now + :delay, expires_at = :now + :ttl,
            -- Capped: a row that another program has filled to the brim must still be able to end.
            failures = min(failures, 9223372036854775807 - :failures) + :failures,
            crashes = min(crashes, 9223372036854775807 - :crashes) + :crashes,
            last_error_type = iif(:failed, :error_type, last_error_type),
            last_error_message = iif(:failed, :error_message, last_error_message),
            last_error_traceback = iif(:failed, :error_traceback, last_error_traceback),
            reason = :reason, cancel_reason = NULL, worker_id = NULL, server_id = NULL
        WHERE id = :id AND claim_seq = :claim_seq AND state = 'processing'
    """,
    # The pid of a worker that is alive is that of its row.
    add_attempt=f"""
        INSERT INTO qml_attempts (job_id, {ATTEMPT_COLUMNS})
        SELECT
            id, claim_seq, :kind, :worker,
            COALESCE(:pid, (SELECT pid FROM qml_workers WHERE id = :worker)),
            COALESCE(started_at, :now), :now, :error_type, :error_message, :error_traceback, :signal,
            :exit_code, :peak_rss_bytes, :cpu_s
        FROM qml_jobs WHERE id = :id AND claim_seq = :claim_seq
        -- Only a row that another program has put there can be in the way; the outcome does not depend on it.
        ON CONFLICT (job_id, claim_seq) DO NOTHING
    """,
    read_back=f"""
        SELECT {JOB}, duration_us IS NOT NULL AS succeeded, (
            SELECT kind FROM qml_attempts WHERE job_id = :id AND claim_seq = :claim_seq) AS recorded
        FROM qml_jobs WHERE id = :id
    """,
)
