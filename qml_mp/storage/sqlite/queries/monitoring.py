"""Every process: what people and `--burst` read."""

from __future__ import annotations

from typing import Final

from qml_mp.core.state import StateName
from qml_mp.storage.job_rows import JOB_COLUMNS as JOB
from qml_mp.storage.queries import MonitoringQueries
from qml_mp.storage.rows import ATTEMPT_COLUMNS
from qml_mp.storage.sqlite.queries.common import ENDED, KNOWN, SERVED, asked_for
from qml_mp.storage.values import JobFilter

INDEX_OF: Final = {
    StateName.ENQUEUED: "qml_jobs_enqueued",
    StateName.SCHEDULED: "qml_jobs_waiting",
    StateName.PROCESSING: "qml_jobs_processing",
    StateName.AWAITING_RETRY: "qml_jobs_waiting",
    StateName.SUCCEEDED: "qml_jobs_ended",
    StateName.FAILED: "qml_jobs_ended",
    StateName.DELETED: "qml_jobs_ended",
}
_NOT_PAUSED: Final = "queue NOT IN (SELECT name FROM qml_limits WHERE kind = 'queue' AND paused)"
_WAITING: Final = "state IN ('scheduled', 'awaiting_retry')"

# One state's share of a page: newest first. Ended jobs, of which there are most, stand in this order in their
# index. The others are sorted, as an index in their order would cost each job two changes more than it has.
_PAGE_OF_STATE: Final = """
    SELECT * FROM (
        SELECT id, created_at FROM qml_jobs INDEXED BY {index}
        WHERE {indexed} AND state = '{state}' AND (created_at, id) < (:before_at, :before_id)
          AND {filter}
        ORDER BY created_at DESC, id DESC LIMIT :limit)
"""


def condition_of(state: StateName) -> str:
    """What a query for jobs of the state has to say too, to use their index."""
    return _WAITING if INDEX_OF[state] == "qml_jobs_waiting" else "true"


def _list_jobs(where: JobFilter) -> str:
    """Each state gives its newest, and the newest of those are the page, so that a page costs the same
    however many jobs have ended."""
    parts = " UNION ALL ".join(
        _PAGE_OF_STATE.format(
            state=state,
            index=INDEX_OF[state],
            indexed=condition_of(state),
            filter=asked_for(where),
        )
        for state in where.each_state()
    )
    return f"""
        SELECT {JOB} FROM qml_jobs
        WHERE id IN (SELECT id FROM ({parts}) ORDER BY created_at DESC, id DESC LIMIT :limit)
        ORDER BY created_at DESC, id DESC
    """


_FAILED_AT: Final = {StateName.FAILED: "finished_at", StateName.AWAITING_RETRY: "enqueued_at"}
_FAILURES: Final = """
    SELECT last_error_key AS kind, count(*) AS jobs, max({failed_at}) AS last_at, rowid AS place
    FROM qml_jobs INDEXED BY qml_jobs_failures
    WHERE (state = 'failed' OR state = 'awaiting_retry') AND state = '{state}' AND {filter}
    GROUP BY last_error_key
"""


def _failure_kinds(where: JobFilter) -> str:
    """Counted in the index alone, as long as the filter asks for nothing else: other columns are read where
    they are looked at. `rowid` is that of the row with the `max`. Rows that another program has written have
    no key."""
    parts = " UNION ALL ".join(
        _FAILURES.format(state=state, failed_at=_FAILED_AT[state], filter=asked_for(where))
        for state in where.each_state()
    )
    return f"""
        SELECT kinds.jobs, kinds.last_at, {JOB}
        FROM (
            SELECT kind, sum(jobs) AS jobs, max(last_at) AS last_at, place FROM ({parts})
            GROUP BY kind ORDER BY jobs DESC, last_at DESC LIMIT :limit) AS kinds
        JOIN qml_jobs ON qml_jobs.rowid = kinds.place
        ORDER BY kinds.jobs DESC, kinds.last_at DESC, id
    """


MONITORING: Final = MonitoringQueries(
    list_jobs=_list_jobs,
    failure_kinds=_failure_kinds,
    # In parts, because each reads a smaller index of its own.
    job_counts=f"""
        SELECT 'enqueued' AS state, count(*) AS jobs
        FROM qml_jobs INDEXED BY qml_jobs_enqueued WHERE state = 'enqueued'
        UNION ALL
        SELECT 'processing', count(*) FROM qml_jobs INDEXED BY qml_jobs_processing WHERE state = 'processing'
        UNION ALL
        SELECT state, count(*) FROM qml_jobs INDEXED BY qml_jobs_waiting WHERE {_WAITING} GROUP BY state
        UNION ALL
        SELECT state, count(*) FROM qml_jobs INDEXED BY qml_jobs_ended WHERE {ENDED} GROUP BY state
    """,
    attempts=f"SELECT {ATTEMPT_COLUMNS} FROM qml_attempts WHERE job_id = :id ORDER BY claim_seq",
    # In parts, because each reads a small index of its own. Of several claims a worker has begun the first.
    queue_stats="""
        SELECT queue, sum(enqueued) AS enqueued, sum(processing) AS processing, sum(held) AS held,
            min(oldest_at) AS oldest_at, :now AS now
        FROM (
            SELECT queue, count(*) AS enqueued, 0 AS processing, 0 AS held, min(enqueued_at) AS oldest_at
            FROM qml_jobs INDEXED BY qml_jobs_enqueued WHERE state = 'enqueued' GROUP BY queue
            UNION ALL
            SELECT queue, 0, count(*), count(*) FILTER (WHERE place > 1), NULL
            FROM (
                SELECT queue, row_number() OVER (
                    PARTITION BY COALESCE(worker_id, id) ORDER BY started_at, priority DESC, created_at, id
                ) AS place
                FROM qml_jobs INDEXED BY qml_jobs_processing WHERE state = 'processing')
            GROUP BY queue
            UNION ALL
            SELECT queue, 0, 0, 0, NULL
            FROM qml_jobs INDEXED BY qml_jobs_waiting
            WHERE state IN ('scheduled', 'awaiting_retry') GROUP BY queue)
        GROUP BY queue ORDER BY queue
    """,
    # From one method to the next, as the claim goes, so that the length of a backlog costs nothing.
    method_stats=f"""
        WITH RECURSIVE waits (queue, method) AS (
            SELECT * FROM (
                SELECT queue, method FROM qml_jobs INDEXED BY qml_jobs_enqueued
                WHERE state = 'enqueued' ORDER BY queue, method LIMIT 1)
            UNION ALL
            SELECT next.queue, next.method
            FROM waits
            JOIN qml_jobs AS next ON next.rowid = (
                SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_enqueued
                WHERE state = 'enqueued' AND (queue, method) > (waits.queue, waits.method)
                ORDER BY queue, method LIMIT 1))
        SELECT queue, method, (
            SELECT count(*) FROM (
                SELECT 1 FROM qml_jobs AS job INDEXED BY qml_jobs_enqueued
                WHERE state = 'enqueued' AND job.queue = waits.queue AND job.method = waits.method
                LIMIT COALESCE(:among, -1))) AS enqueued
        FROM waits WHERE {SERVED} ORDER BY queue, method
    """,
    due_work=f"""
        SELECT
            (SELECT count(*) FROM qml_jobs INDEXED BY qml_jobs_enqueued
             WHERE state = 'enqueued' AND {SERVED} AND {KNOWN} AND {_NOT_PAUSED})
            + (SELECT count(*) FROM qml_jobs INDEXED BY qml_jobs_processing
               WHERE state = 'processing' AND {SERVED}
                 AND (:server_id IS NULL OR server_id = :server_id))
            AS runnable,
            (SELECT count(*) FROM qml_jobs INDEXED BY qml_jobs_waiting
             WHERE state IN ('scheduled', 'awaiting_retry') AND run_at <= :now AND {SERVED} AND {KNOWN}
               AND {_NOT_PAUSED})
            AS waiting
    """,
    later_work=f"""
        SELECT count(*) AS jobs, min(run_at) AS due_at, :now AS now
        FROM qml_jobs INDEXED BY qml_jobs_waiting
        WHERE state IN ('scheduled', 'awaiting_retry') AND run_at > :now AND {SERVED} AND {KNOWN}
    """,
)
