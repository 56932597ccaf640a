"""Every process: claims and their ends."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.job_rows import CLAIM_COLUMNS, released_columns
from qml_mp.storage.job_rows import JOB_COLUMNS as JOB
from qml_mp.storage.queries import ChoiceQueries, ClaimQueries, TakeQueries
from qml_mp.storage.rows import ATTEMPT_COLUMNS
from qml_mp.storage.sqlite.queries.common import ANY_LIMIT


def _from(
    index: str, *, start: str, same: str, steps: bool = True, guard: str = "", bounded: bool = False
) -> ChoiceQueries:
    """The choice of claims: numbered and stamped in the one statement that chooses, under the write lock.

    A queue can be full of methods that this worker does not know, whose backlog must cost nothing. So first
    the methods that wait, by steps from one to the next in an index that has the method before the order;
    then, of those that are known, the head of each; then the best of all. `best` is also asked without the
    write lock, whether there is anything to claim, so that idle workers never hold up one that has work to
    commit. Without `steps`, the methods are those that `start` gives. `bounded`: by only_priority and so on.
    """
    entries = f"FROM qml_jobs INDEXED BY {index} WHERE state = 'enqueued'"
    of_method = f"{entries} {same.replace('waits.', 'h.')} AND method = h.method"
    step = f"""
        UNION ALL
        SELECT queue, (SELECT method {entries} {same} AND method > waits.method ORDER BY method LIMIT 1)
        FROM waits WHERE method IS NOT NULL
    """
    heads = f"""
        WITH RECURSIVE waits (queue, method) AS ({start.format(entries=entries)} {step if steps else ""}),
        head (job, queue, method, priority, created_at, id) AS (
            SELECT job.rowid, h.queue, h.method, job.priority, job.created_at, job.id
            FROM waits AS h
            JOIN qml_jobs AS job ON job.rowid = (SELECT rowid {of_method} ORDER BY {_BEST} LIMIT 1)
            WHERE h.method IS NOT NULL
              AND (:methods IS NULL OR h.method IN (SELECT value FROM json_each(:methods))))
    """
    several = _several(heads, entries, same, of_method, bounded=bounded)
    one = f"{heads} SELECT job FROM head ORDER BY {_BEST} LIMIT 1"
    return ChoiceQueries(one=_take(one, guard), several=_take(several, guard))


def _several(heads: str, entries: str, same: str, of_method: str, *, bounded: bool) -> str:
    """The best of all the heads and of what comes behind them."""
    is_single = "(SELECT count(*) FROM head) = 1" + (" AND :only_priority IS NULL" if bounded else "")
    # Each head that is taken gives way to the next job of its method: a recursion with an order goes on with
    # the best that it has found so far. Of a single method, as is most common, a walk along the index has the
    # same jobs in a third of the time. (Asked for among the conditions, whether there is only one would be
    # asked at each entry of the walk.)
    return f"""
        {heads},
        best (job, queue, method, priority, created_at, id) AS (
            SELECT * FROM head WHERE NOT ({is_single})
            UNION ALL
            SELECT job.rowid, h.queue, h.method, job.priority, job.created_at, job.id
            FROM best AS h
            JOIN qml_jobs AS job ON job.rowid = COALESCE(
                (SELECT rowid {of_method} AND priority = h.priority
                   AND (created_at, id) > (h.created_at, h.id) ORDER BY created_at, id LIMIT 1),
                (SELECT rowid {of_method} AND priority < h.priority ORDER BY {_BEST} LIMIT 1))
            {_WITHIN_BOUNDS if bounded else ""}
            ORDER BY {_BEST} LIMIT :limit)
        SELECT job FROM best
        UNION ALL
        SELECT job FROM (
            SELECT rowid AS job {entries} {same.replace("waits.queue", "(SELECT queue FROM head)")}
              AND method = (SELECT method FROM head)
            ORDER BY {_BEST} LIMIT iif({is_single}, :limit, 0))
    """


_BEST: Final = "priority DESC, created_at, id"
"""Highest priority, then oldest."""

_WITHIN_BOUNDS: Final = """
    WHERE iif(:only_priority IS NULL, 1, job.priority = :only_priority
        AND (:until_at IS NULL OR (job.created_at, job.id) < (:until_at, :until_id)))
"""
"""What comes before a limited job. Asked of one row at a time: it may not choose how that is found."""


def _take(best: str, guard: str) -> TakeQueries:
    claim = f"""
        {_HAND_OUT}
        WHERE {guard} rowid IN ({best})
          AND (NOT :registered OR EXISTS (
              SELECT 1 FROM qml_workers WHERE id = :worker_id AND epoch = :epoch))
        RETURNING {CLAIM_COLUMNS}
    """
    return TakeQueries(best=f"SELECT id FROM qml_jobs WHERE rowid IN ({best})", claim=claim, exchange=None)


_HAND_OUT: Final = """
    UPDATE qml_jobs
    SET state = 'processing', claim_seq = claim_seq + 1, worker_id = :worker_id, server_id = :server_id,
        started_at = :now, reason = NULL
"""


_ENTRIES: Final = "FROM qml_jobs INDEXED BY qml_jobs_processing WHERE state = 'processing'"
_PROCESSING: Final = f"SELECT {JOB} {_ENTRIES}"
_ALL: Final = f"SELECT {released_columns()} {_ENTRIES}"
_OF_SERVER: Final = f"{_ALL} AND server_id = :server_id ORDER BY started_at, id"

_WITHOUT_LIMITS: Final = f"NOT {ANY_LIMIT} AND"
"""What limits hold back is claimed by another statement."""
_FROM_ALL: Final = _from(
    "qml_jobs_enqueued_any",
    guard=_WITHOUT_LIMITS,
    start="SELECT NULL, (SELECT method {entries} ORDER BY method LIMIT 1)",
    same="",
)
# Of the served queues alone, so that a backlog in another queue costs nothing either.
_FROM_SERVED: Final = _from(
    "qml_jobs_enqueued",
    guard=_WITHOUT_LIMITS,
    start="SELECT value, (SELECT method {entries} AND queue = served.value ORDER BY method LIMIT 1) "
    "FROM json_each(:queues) AS served",
    same="AND queue = waits.queue",
)
_OF_KINDS: Final = _from(
    "qml_jobs_enqueued",
    # No more than are claimed: the best kinds come first, and nobody else takes of them meanwhile.
    start="SELECT value, json_extract(:kind_methods, '$[' || key || ']') "
    "FROM json_each(:kind_queues) WHERE key < :limit",
    same="AND queue = waits.queue",
    steps=False,
    bounded=True,
)
_SUCCEED: Final = """
    UPDATE qml_jobs
    SET state = 'succeeded', result = :result, duration_us = :duration_us, reason = :reason,
        finished_at = :now, expires_at = :now + :ttl, run_at = NULL, cancel_reason = NULL,
        worker_id = NULL, server_id = NULL
    WHERE id = :id AND claim_seq = :claim_seq AND worker_id = :held_by AND state = 'processing'
"""
_ITS_ATTEMPT: Final = """
    FROM qml_attempts AS attempt WHERE job_id = qml_jobs.id AND attempt.claim_seq = qml_jobs.claim_seq
"""

CLAIMS: Final = ClaimQueries(
    from_all=_FROM_ALL,
    from_one=_FROM_SERVED,
    from_several=_FROM_SERVED,
    behind=None,  # nothing is left of what was claimed
    behind_in_all=None,
    of_kinds=_OF_KINDS.several,
    claim_this=f"{_HAND_OUT} WHERE id = :id",
    fail_unclaimable="""
        UPDATE qml_jobs
        SET state = 'failed', finished_at = :now, expires_at = :now + :ttl, last_error_type = :type,
            last_error_message = :message, last_error_traceback = NULL, last_error_key = :key
        WHERE id = :id
    """,
    all=f"{_ALL} ORDER BY started_at, id",
    of_worker=f"{_ALL} AND worker_id = :worker_id ORDER BY started_at, id",
    whole_of_worker=f"{_PROCESSING} AND worker_id = :worker_id ORDER BY started_at, id",
    of_server=_OF_SERVER,
    lock_of_server=_OF_SERVER,  # the write lock is held
    lock="""
        SELECT id, claim_seq, worker_id, cancel_reason FROM qml_jobs
        WHERE id IN (SELECT value FROM json_each(:ids)) AND state = 'processing'
    """,
    succeed=_SUCCEED,
    succeed_and_tell=_SUCCEED,  # a commit tells of itself
    # The owner is cleared too, so that a row that is not Processing never names a worker.
    finish="""
        UPDATE qml_jobs
        SET state = :state, result = NULL, duration_us = NULL,
            enqueued_at = iif(:waits AND NOT :keeps_age, :now, enqueued_at),
            finished_at = iif(:waits, NULL, :now),
            run_at = :now + :delay, expires_at = :now + :ttl,
            -- Capped: a row that another program has filled to the brim must still be able to end.
            failures = min(failures, 9223372036854775807 - :failures) + :failures,
            crashes = min(crashes, 9223372036854775807 - :crashes) + :crashes,
            last_error_type = iif(:failed, :error_type, last_error_type),
            last_error_message = iif(:failed, :error_message, last_error_message),
            last_error_traceback = iif(:failed, :error_traceback, last_error_traceback),
            last_error_key = iif(:failed, :error_key, last_error_key),
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
        SELECT {JOB},
               (SELECT kind {_ITS_ATTEMPT}) AS recorded, (SELECT worker {_ITS_ATTEMPT}) AS recorded_of
        FROM qml_jobs WHERE id IN (SELECT value FROM json_each(:ids))
    """,
)
