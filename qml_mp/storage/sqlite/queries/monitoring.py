"""Every process: what people and `--burst` read."""

from __future__ import annotations

from typing import Final

from qml_mp.core.state import StateName
from qml_mp.storage.job_rows import example_columns
from qml_mp.storage.queries import MonitoringQueries
from qml_mp.storage.rows import ATTEMPT_COLUMNS
from qml_mp.storage.sqlite.queries.common import (
    ENDED,
    KNOWN,
    NEXT_METHOD,
    NEXT_PRIORITY,
    NEXT_QUEUE,
    SERVED,
    asked_for,
)
from qml_mp.storage.values import FAILED_AT, HEADS_OF_GROUPS, MOST_GROUPS_OF_A_QUEUE, JobFilter

_NOT_PAUSED: Final = "queue NOT IN (SELECT name FROM qml_limits WHERE kind = 'queue' AND paused)"
_WAITING: Final = "state IN ('scheduled', 'awaiting_retry')"
_RUNNABLE: Final = f"""
    FROM qml_jobs INDEXED BY qml_jobs_enqueued
    WHERE state = 'enqueued' AND {SERVED} AND {KNOWN} AND {_NOT_PAUSED}
"""
_HELD: Final = f"""
    FROM qml_jobs INDEXED BY qml_jobs_processing
    WHERE state = 'processing' AND {SERVED} AND (:server_id IS NULL OR server_id = :server_id)
"""
_DUE: Final = f"""
    FROM qml_jobs INDEXED BY qml_jobs_waiting
    WHERE {_WAITING} AND run_at <= :now AND {SERVED} AND {KNOWN} AND {_NOT_PAUSED}
"""

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
        _FAILURES.format(state=state, failed_at=FAILED_AT[state], filter=asked_for(where))
        for state in where.each_state()
    )
    return f"""
        SELECT kinds.kind, kinds.jobs, kinds.last_at, {example_columns()}
        FROM (
            SELECT kind, sum(jobs) AS jobs, max(last_at) AS last_at, place FROM ({parts})
            GROUP BY kind ORDER BY iif(:newest_first, 0, sum(jobs)) DESC, last_at DESC LIMIT :limit) AS kinds
        JOIN qml_jobs ON qml_jobs.rowid = kinds.place
        ORDER BY iif(:newest_first, 0, kinds.jobs) DESC, kinds.last_at DESC, id
    """


_KEYS: Final = """
    keys_{state} (kind) AS (
        SELECT * FROM (
            SELECT last_error_key FROM qml_jobs INDEXED BY qml_jobs_failures
            WHERE (state = 'failed' OR state = 'awaiting_retry') AND state = '{state}'
            ORDER BY last_error_key LIMIT 1)
        UNION ALL
        SELECT next.last_error_key FROM keys_{state} JOIN qml_jobs AS next ON next.rowid = (
            SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_failures
            WHERE (state = 'failed' OR state = 'awaiting_retry') AND state = '{state}'
              AND last_error_key > COALESCE(keys_{state}.kind, '')
            ORDER BY last_error_key LIMIT 1))
"""
_OF_KEY: Final = """
    FROM qml_jobs INDEXED BY qml_jobs_failures
    WHERE (state = 'failed' OR state = 'awaiting_retry') AND state = '{state}'
      AND last_error_key IS keys_{state}.kind AND {ended} AND {failed_at} BETWEEN :since AND :until_time
"""
_COUNTED: Final = """
    SELECT kind, (SELECT count(*) FROM (SELECT 1 {of_key} LIMIT :most)) AS jobs,
           (SELECT rowid {of_key} ORDER BY {failed_at} DESC LIMIT 1) AS place
    FROM keys_{state}
"""


def _failure_kinds_among(where: JobFilter) -> str:
    """From one kind to the next, and of each at most so many entries of the index. A kind is of one method.
    CROSS, which keeps SQLite from reading all jobs of the method instead. Sorted without the columns of jobs,
    which have tracebacks, of all kinds however few are given."""
    keys, counted = [], []
    for state in where.each_state():
        of_state = {"state": state, "failed_at": FAILED_AT[state]}
        ended = "true" if state is StateName.FAILED else "finished_at IS NULL"
        keys.append(_KEYS.format(**of_state))
        counted.append(_COUNTED.format(**of_state, of_key=_OF_KEY.format(**of_state, ended=ended)))
    last_at = "iif(qml_jobs.state = 'failed', finished_at, enqueued_at)"
    return f"""
        WITH RECURSIVE {", ".join(keys)}
        SELECT kinds.kind, kinds.jobs, kinds.last_at, {example_columns()}
        FROM (
            SELECT part.kind, sum(part.jobs) AS jobs, max({last_at}) AS last_at, part.place
            FROM ({" UNION ALL ".join(counted)}) AS part
            CROSS JOIN qml_jobs ON qml_jobs.rowid = part.place
            WHERE {"method = :method" if where.method is not None else "true"}
            GROUP BY part.kind
            ORDER BY iif(:newest_first, 0, sum(part.jobs)) DESC, last_at DESC, id LIMIT :limit) AS kinds
        CROSS JOIN qml_jobs ON qml_jobs.rowid = kinds.place
        ORDER BY iif(:newest_first, 0, kinds.jobs) DESC, kinds.last_at DESC, id
    """


# Of several claims a worker has begun the first.
_PROCESSING: Final = """
    SELECT queue, 0 AS enqueued, count(*) AS processing, count(*) FILTER (WHERE place > 1) AS held,
           NULL AS oldest_at
    FROM (
        SELECT queue, row_number() OVER (
            PARTITION BY COALESCE(worker_id, id) ORDER BY started_at, priority DESC, created_at, id
        ) AS place
        FROM qml_jobs INDEXED BY qml_jobs_processing WHERE state = 'processing')
    GROUP BY queue
"""
# From one method and priority of a queue to the next, and after so many of them, as programs may use any
# number of priorities, to the next queue.
_GROUPS_OF_QUEUES: Final = f"""
    part (place, queue, method, priority, number) AS (
        SELECT * FROM (
            SELECT rowid, queue, method, priority, 1 FROM qml_jobs INDEXED BY qml_jobs_enqueued
            WHERE state = 'enqueued' ORDER BY queue, method, priority DESC LIMIT 1)
        UNION ALL
        SELECT next.rowid, next.queue, next.method, next.priority,
               iif(next.queue = part.queue, part.number + 1, 1)
        FROM part JOIN qml_jobs AS next ON next.rowid = COALESCE(
            CASE WHEN part.number <= {MOST_GROUPS_OF_A_QUEUE}
                 THEN COALESCE({NEXT_PRIORITY}, {NEXT_METHOD}) END,
            {NEXT_QUEUE}))
"""
_OF_GROUP: Final = """
    FROM qml_jobs AS job INDEXED BY qml_jobs_enqueued
    WHERE state = 'enqueued' AND job.queue = part.queue AND job.method = part.method
      AND job.priority = part.priority
"""


def _at_heads(look: str) -> str:
    """A look at the first jobs of a `part`: at more where its queue has few. Each by itself, as SQLite takes
    no column for a LIMIT."""
    looks = " ".join(
        f"WHEN groups_of_queue <= {groups} THEN "
        + look.format(heads=f"max(10, min({heads}, :most / {groups}))")
        for groups, heads in HEADS_OF_GROUPS.items()
    )
    return f"CASE {looks} ELSE {look.format(heads=10)} END"


_OLDEST: Final = _at_heads(
    f"(SELECT min(enqueued_at) FROM (SELECT enqueued_at {_OF_GROUP} ORDER BY created_at LIMIT {{heads}}))"
)
_MAY_HAVE_MORE: Final = _at_heads(f"EXISTS (SELECT 1 {_OF_GROUP} LIMIT 1 OFFSET {{heads}} - 1)")

_AMONG: Final = """
    SELECT '{state}' AS state, count(*) AS jobs FROM (
        SELECT 1 FROM qml_jobs INDEXED BY {index} WHERE {condition} AND state = '{state}' LIMIT :most)
"""
_INDEXED: Final = {
    StateName.ENQUEUED: ("qml_jobs_enqueued", "true"),
    StateName.PROCESSING: ("qml_jobs_processing", "true"),
    StateName.SCHEDULED: ("qml_jobs_later", "(state = 'scheduled' OR state = 'awaiting_retry')"),
    StateName.AWAITING_RETRY: ("qml_jobs_later", "(state = 'scheduled' OR state = 'awaiting_retry')"),
    StateName.SUCCEEDED: ("qml_jobs_ended", ENDED),
    StateName.FAILED: ("qml_jobs_ended", ENDED),
    StateName.DELETED: ("qml_jobs_ended", ENDED),
}

MONITORING: Final = MonitoringQueries(
    failure_kinds=_failure_kinds,
    failure_kinds_among=_failure_kinds_among,
    job_counts_among=" UNION ALL ".join(
        _AMONG.format(state=state, index=index, condition=condition)
        for state, (index, condition) in _INDEXED.items()
    ),
    queue_stats_among=f"""
        WITH RECURSIVE {_GROUPS_OF_QUEUES}, each_queue AS MATERIALIZED (
            SELECT queue, min({_OLDEST}) AS oldest_at,
                   max(number > {MOST_GROUPS_OF_A_QUEUE} OR {_MAY_HAVE_MORE}) AS has_more
            FROM (SELECT *, max(number) OVER (PARTITION BY queue) AS groups_of_queue FROM part) AS part
            GROUP BY queue)
        SELECT queue, sum(enqueued) AS enqueued, sum(processing) AS processing, sum(held) AS held,
            min(oldest_at) AS oldest_at, max(has_more) AS has_more, :now AS now
        FROM (
            SELECT queue, (
                SELECT count(*) FROM (
                    SELECT 1 FROM qml_jobs AS job INDEXED BY qml_jobs_enqueued
                    WHERE state = 'enqueued' AND job.queue = each_queue.queue LIMIT :most)) AS enqueued,
                0 AS processing, 0 AS held, oldest_at, has_more
            FROM each_queue
            UNION ALL
            SELECT *, false FROM ({_PROCESSING})
            UNION ALL
            SELECT DISTINCT queue, 0, 0, 0, NULL, false FROM (
                SELECT queue FROM qml_jobs INDEXED BY qml_jobs_waiting
                WHERE state IN ('scheduled', 'awaiting_retry') ORDER BY run_at LIMIT :most))
        GROUP BY queue ORDER BY queue
    """,
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
    attempts=f"""
        SELECT {ATTEMPT_COLUMNS} FROM qml_attempts WHERE job_id = :id
        ORDER BY claim_seq DESC LIMIT COALESCE(:newest, -1)
    """,
    # In parts, because each reads a small index of its own.
    queue_stats=f"""
        SELECT queue, sum(enqueued) AS enqueued, sum(processing) AS processing, sum(held) AS held,
            min(oldest_at) AS oldest_at, false AS has_more, :now AS now
        FROM (
            SELECT queue, count(*) AS enqueued, 0 AS processing, 0 AS held, min(enqueued_at) AS oldest_at
            FROM qml_jobs INDEXED BY qml_jobs_enqueued WHERE state = 'enqueued' GROUP BY queue
            UNION ALL
            {_PROCESSING}
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
            JOIN qml_jobs AS next ON next.rowid = COALESCE(
                (SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_enqueued
                 WHERE state = 'enqueued' AND queue = waits.queue AND method > waits.method
                 ORDER BY method LIMIT 1),
                (SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_enqueued
                 WHERE state = 'enqueued' AND queue > waits.queue
                 ORDER BY queue, method LIMIT 1)))
        SELECT queue, method, (
            SELECT count(*) FROM (
                SELECT 1 FROM qml_jobs AS job INDEXED BY qml_jobs_enqueued
                WHERE state = 'enqueued' AND job.queue = waits.queue AND job.method = waits.method
                LIMIT COALESCE(:among, -1))) AS enqueued
        FROM waits WHERE {SERVED} ORDER BY queue, method
    """,
    due_count=f"SELECT count(*) AS jobs {_DUE}",
    # Each ends with the first that it finds. What stands before it and is unknown or paused is passed over.
    has_due_work=f"""
        SELECT EXISTS (SELECT 1 {_RUNNABLE}) OR EXISTS (SELECT 1 {_HELD})
               OR (:with_waiting AND EXISTS (SELECT 1 {_DUE})) AS found
    """,
    later_work=f"""
        SELECT count(*) AS jobs, min(run_at) AS due_at, :now AS now
        FROM qml_jobs INDEXED BY qml_jobs_waiting
        WHERE state IN ('scheduled', 'awaiting_retry') AND run_at > :now
          AND run_at <= COALESCE(:now + :within, 9e999) -- not an OR, for which the whole index is read
          AND {SERVED} AND {KNOWN} AND (:paused OR {_NOT_PAUSED})
    """,
)
