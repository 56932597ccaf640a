"""Every process: what people and `--burst` read."""

from __future__ import annotations

from typing import Final

from qml_mp.core.state import StateName
from qml_mp.storage.postgres.queries.common import JOB, KNOWN, METHOD_NAME, SERVED, asked_for
from qml_mp.storage.queries import MonitoringQueries
from qml_mp.storage.rows import ATTEMPT_COLUMNS
from qml_mp.storage.values import JobFilter

_PAGE_OF_STATE: Final = """
    (SELECT id, created_at FROM {{s}}.jobs
     WHERE {condition} AND (created_at, id) < (%(before_at)s::timestamptz, %(before_id)s)
       AND {filter}
     ORDER BY created_at DESC, id DESC LIMIT %(limit)s)
"""


def condition_of(state: StateName) -> str:
    """Of the jobs in the state: what their index has for its condition."""
    return f"state = '{state}'" + (" AND id <> ''" if state is StateName.ENQUEUED else "")


def _list_jobs(where: JobFilter) -> str:
    """Each state gives its newest, and the newest of those are the page: from the index of ended jobs
    it costs the same however many there are. The state is part of the text, because an index for
    some states can only be used for a state that the planner knows."""
    parts = " UNION ALL ".join(
        _PAGE_OF_STATE.format(condition=condition_of(state), filter=asked_for(where))
        for state in where.each_state()
    )
    return f"""
        WITH page AS MATERIALIZED (
            SELECT newest.id FROM ({parts}) AS newest ORDER BY created_at DESC, id DESC LIMIT %(limit)s
        )
        SELECT {JOB} FROM page JOIN {{s}}.jobs AS j USING (id) ORDER BY j.created_at DESC, j.id DESC
    """


_FAILED_AT: Final = {StateName.FAILED: "finished_at", StateName.AWAITING_RETRY: "enqueued_at"}
_FAILURES: Final = """
    SELECT last_error_key AS kind, count(*) AS jobs, max({failed_at}) AS last_at
    FROM {{s}}.jobs WHERE state = '{state}' AND {filter} GROUP BY last_error_key
"""
_NEWEST: Final = """
    (SELECT id FROM {{s}}.jobs
     WHERE state = '{state}' AND last_error_key {is_the_kind} AND {failed_at} = kinds.last_at LIMIT 1)
"""


def _failure_kinds(where: JobFilter) -> str:
    """Counted in the index alone, as long as the filter asks for nothing else; the newest is then looked up.
    Rows that another program has written have no key."""
    parts, newest = [], []
    for state in where.each_state():
        of_state = {"state": state, "failed_at": _FAILED_AT[state]}
        parts.append(_FAILURES.format(**of_state, filter=asked_for(where)))
        newest.append(_NEWEST.format(**of_state, is_the_kind="= kinds.kind"))
        newest.append(_NEWEST.format(**of_state, is_the_kind="IS NULL AND kinds.kind IS NULL"))
    return f"""
        WITH kinds AS MATERIALIZED (
            SELECT kind, sum(jobs)::bigint AS jobs, max(last_at) AS last_at
            FROM ({" UNION ALL ".join(parts)}) AS part
            GROUP BY kind ORDER BY jobs DESC, last_at DESC LIMIT %(limit)s
        )
        SELECT kinds.jobs, kinds.last_at, {JOB}
        FROM kinds JOIN {{s}}.jobs AS j ON j.id = coalesce({", ".join(newest)})
        ORDER BY kinds.jobs DESC, kinds.last_at DESC, j.id
    """


_WAITING: Final = f"""
    SELECT j.queue, {METHOD_NAME} AS name, j.method FROM {{s}}.jobs AS j
    WHERE j.state = 'enqueued' AND j.queue <> ''
"""

_NOT_PAUSED: Final = "queue <> ALL (ARRAY(SELECT name FROM {s}.limits WHERE kind = 'queue' AND paused))"

MONITORING: Final = MonitoringQueries(
    list_jobs=_list_jobs,
    failure_kinds=_failure_kinds,
    # In parts, because each reads a smaller index of its own.
    job_counts="""
        SELECT 'enqueued' AS state, count(*) AS jobs FROM {s}.jobs WHERE state = 'enqueued' AND id <> ''
        UNION ALL
        SELECT 'processing', count(*) FROM {s}.jobs WHERE state = 'processing'
        UNION ALL
        SELECT 'awaiting_retry', count(*) FROM {s}.jobs WHERE state = 'awaiting_retry'
        UNION ALL
        SELECT 'scheduled', count(*) - (SELECT count(*) FROM {s}.jobs WHERE state = 'awaiting_retry')
        FROM {s}.jobs WHERE state IN ('scheduled', 'awaiting_retry')
        UNION ALL
        SELECT state, count(*) FROM {s}.jobs WHERE state IN ('succeeded', 'failed', 'deleted') GROUP BY state
    """,
    attempts=f"SELECT {ATTEMPT_COLUMNS} FROM {{s}}.attempts WHERE job_id = %(id)s ORDER BY claim_seq",
    # In parts, because each reads a small index of its own. Of several claims a worker has begun the first.
    queue_stats="""
        SELECT queue, sum(enqueued)::bigint AS enqueued, sum(processing)::bigint AS processing,
               sum(held)::bigint AS held, min(since) AS oldest_at, now() AS now
        FROM (
            SELECT queue, count(*) AS enqueued, 0 AS processing, 0 AS held, min(enqueued_at) AS since
            FROM {s}.jobs WHERE state = 'enqueued' AND queue <> '' GROUP BY queue
            UNION ALL
            SELECT queue, 0, count(*), count(*) FILTER (WHERE place > 1), NULL
            FROM (
                SELECT queue, row_number() OVER (
                    PARTITION BY coalesce(worker_id, id) ORDER BY started_at, priority DESC, created_at, id
                ) AS place
                FROM {s}.jobs WHERE state = 'processing'
            ) AS claim
            GROUP BY queue
            UNION ALL
            SELECT queue, 0, 0, 0, NULL FROM {s}.jobs
            WHERE state IN ('scheduled', 'awaiting_retry') GROUP BY queue
        ) AS part
        GROUP BY queue ORDER BY queue
    """,
    # From one method to the next, as the claim goes, so that the length of a backlog costs nothing.
    method_stats=f"""
        WITH RECURSIVE head AS (
            ({_WAITING} ORDER BY j.queue, {METHOD_NAME} LIMIT 1)
            UNION ALL
            SELECT next.* FROM head AS h
            CROSS JOIN LATERAL (
                {_WAITING} AND (j.queue, {METHOD_NAME}) > (h.queue, h.name)
                ORDER BY j.queue, {METHOD_NAME} LIMIT 1
            ) AS next
        )
        SELECT h.queue, h.method, counted.enqueued
        FROM head AS h
        CROSS JOIN LATERAL (
            SELECT count(*) AS enqueued
            FROM (
                {_WAITING} AND j.queue = h.queue AND {METHOD_NAME} = h.name LIMIT %(among)s::bigint
            ) AS waiting
        ) AS counted
        WHERE {SERVED}
        ORDER BY h.queue, h.name
    """,
    # Runnable jobs in two parts, because a plan that is kept must look for named queues in the index.
    due_work=f"""
        SELECT (SELECT count(*) FROM {{s}}.jobs
                WHERE state = 'enqueued' AND queue <> '' AND queue = ANY(%(queues)s::text[]) AND {KNOWN}
                  AND {_NOT_PAUSED})
               + (SELECT count(*) FROM {{s}}.jobs
                  WHERE %(queues)s::text[] = '{{{{}}}}' AND state = 'enqueued' AND queue <> '' AND {KNOWN}
                    AND {_NOT_PAUSED})
               + (SELECT count(*) FROM {{s}}.jobs
                  WHERE state = 'processing' AND {SERVED}
                    AND (%(server_id)s::text IS NULL OR server_id = %(server_id)s)) AS runnable,
               (SELECT count(*) FROM {{s}}.jobs
                WHERE state IN ('scheduled', 'awaiting_retry') AND run_at <= now() AND {SERVED} AND {KNOWN}
                  AND {_NOT_PAUSED}) AS waiting
    """,
    later_work=f"""
        SELECT count(*) AS jobs, min(run_at) AS due_at, now() AS now FROM {{s}}.jobs
        WHERE state IN ('scheduled', 'awaiting_retry') AND run_at > now() AND {SERVED} AND {KNOWN}
    """,
)
