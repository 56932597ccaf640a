"""Every process: what people and `--burst` read."""

from __future__ import annotations

from typing import Final

from qml_mp.core.state import StateName
from qml_mp.storage.job_rows import example_columns
from qml_mp.storage.postgres.queries.common import GROUP, KNOWN, METHOD_NAME, SERVED, asked_for
from qml_mp.storage.postgres.queries.listing import condition_of
from qml_mp.storage.queries import MonitoringQueries
from qml_mp.storage.rows import ATTEMPT_COLUMNS
from qml_mp.storage.values import FAILED_AT, HEADS_OF_GROUPS, MOST_GROUPS_OF_A_QUEUE, JobFilter

_FAILURES: Final = """
    SELECT last_error_key AS kind, count(*) AS jobs, max({failed_at}) AS last_at
    FROM {{s}}.jobs WHERE state = '{state}' AND {filter} GROUP BY last_error_key
"""
_NEWEST: Final = """
    (SELECT id FROM {{s}}.jobs
     WHERE state = '{state}' AND last_error_key {is_the_kind} AND {failed_at} = kinds.last_at
       AND {filter} LIMIT 1)
"""
# LIMIT: each is looked up by itself, however many kinds the planner expects.
_EXAMPLE: Final = "SELECT * FROM {{s}}.jobs WHERE id = {id} LIMIT 1"


def _failure_kinds(where: JobFilter) -> str:
    """Counted in the index alone, as long as the filter asks for nothing else; the newest is then looked up.
    Rows that another program has written have no key."""
    parts, newest = [], []
    for state in where.each_state():
        of_state = {"state": state, "failed_at": FAILED_AT[state], "filter": asked_for(where)}
        parts.append(_FAILURES.format(**of_state))
        newest.append(_NEWEST.format(**of_state, is_the_kind="= kinds.kind"))
        newest.append(_NEWEST.format(**of_state, is_the_kind="IS NULL AND kinds.kind IS NULL"))
    return f"""
        WITH kinds AS MATERIALIZED (
            SELECT kind, sum(jobs)::bigint AS jobs, max(last_at) AS last_at
            FROM ({" UNION ALL ".join(parts)}) AS part
            GROUP BY kind
            ORDER BY CASE WHEN %(newest_first)s THEN 0 ELSE sum(jobs) END DESC, last_at DESC LIMIT %(limit)s
        )
        SELECT kinds.kind, kinds.jobs, kinds.last_at, {example_columns(of="j.")}
        FROM kinds CROSS JOIN LATERAL ({_EXAMPLE.format(id=f"coalesce({', '.join(newest)})")}) AS j
        ORDER BY CASE WHEN %(newest_first)s THEN 0 ELSE kinds.jobs END DESC, kinds.last_at DESC, j.id
    """


_WAITING: Final = f"""
    SELECT j.queue, {METHOD_NAME} AS name, j.method FROM {{s}}.jobs AS j
    WHERE j.state = 'enqueued' AND j.queue <> ''
"""

_NOT_PAUSED: Final = "queue <> ALL (ARRAY(SELECT name FROM {s}.limits WHERE kind = 'queue' AND paused))"

# Runnable jobs in two parts, because a plan that is kept must look for named queues in the index.
_RUNNABLE_IN_QUEUES: Final = f"""
    FROM {{s}}.jobs
    WHERE state = 'enqueued' AND queue <> '' AND queue = ANY(%(queues)s::text[]) AND {KNOWN}
      AND {_NOT_PAUSED}
"""
_RUNNABLE_IN_ALL: Final = f"""
    FROM {{s}}.jobs
    WHERE %(queues)s::text[] = '{{{{}}}}' AND state = 'enqueued' AND queue <> '' AND {KNOWN} AND {_NOT_PAUSED}
"""
_HELD: Final = f"""
    FROM {{s}}.jobs
    WHERE state = 'processing' AND {SERVED} AND (%(server_id)s::text IS NULL OR server_id = %(server_id)s)
"""
_DUE: Final = f"""
    FROM {{s}}.jobs
    WHERE state IN ('scheduled', 'awaiting_retry') AND run_at <= now() AND {SERVED} AND {KNOWN}
      AND {_NOT_PAUSED}
"""

_KEYS: Final = """
    keys_{state} AS (
        (SELECT last_error_key AS kind FROM {{s}}.jobs WHERE state = '{state}'
         ORDER BY last_error_key LIMIT 1)
        UNION ALL
        SELECT (SELECT last_error_key FROM {{s}}.jobs
                WHERE state = '{state}' AND last_error_key > keys_{state}.kind
                ORDER BY last_error_key LIMIT 1)
        FROM keys_{state} WHERE kind IS NOT NULL)
"""
# Newest first, and in the order of the index, so that no other one is as good where failures were few.
_OF_KEY: Final = """
    FROM {{s}}.jobs
    WHERE state = '{state}' AND last_error_key {is_the_kind} AND {ended}
      AND {failed_at} BETWEEN %(since)s AND %(until_time)s
    ORDER BY last_error_key DESC, finished_at DESC, enqueued_at DESC
"""
_COUNTED: Final = """
    SELECT keys_{state}.kind, counted.jobs, newest.id, newest.last_at
    FROM keys_{state}
    CROSS JOIN LATERAL (
        SELECT count(*) AS jobs FROM (SELECT {of_key} LIMIT %(most)s) AS counted_few) AS counted
    CROSS JOIN LATERAL (SELECT id, {failed_at} AS last_at {of_key} LIMIT 1) AS newest
    WHERE keys_{state}.kind IS NOT NULL
"""


def _failure_kinds_among(where: JobFilter) -> str:
    """From one kind to the next, and of each at most so many entries of the index. A kind is of one method.
    Rows that another program has written have no key, which is in no range of others."""
    keys, counted = [], []
    for state in where.each_state():
        of_state = {"state": state, "failed_at": FAILED_AT[state]}
        ended = "finished_at IS NOT NULL" if state is StateName.FAILED else "finished_at IS NULL"
        keys.append(_KEYS.format(**of_state))
        of_key = _OF_KEY.format(**of_state, ended=ended, is_the_kind=f"= keys_{state}.kind")
        counted.append(_COUNTED.format(**of_state, of_key=of_key))
        keyless = _OF_KEY.format(**of_state, ended=ended, is_the_kind="IS NULL")
        counted.append(f"""
            SELECT NULL, (SELECT count(*) FROM (SELECT {keyless} LIMIT %(most)s) AS counted_few),
                   newest.id, newest.last_at
            FROM (SELECT id, {FAILED_AT[state]} AS last_at {keyless} LIMIT 1) AS newest
        """)
    return f"""
        WITH RECURSIVE {", ".join(keys)}, part AS MATERIALIZED (
            {" UNION ALL ".join(counted)}
        ), kinds AS (
            SELECT kind, sum(jobs)::bigint AS jobs, max(last_at) AS last_at,
                   (array_agg(id ORDER BY last_at DESC))[1] AS id
            FROM part GROUP BY kind
        )
        SELECT kinds.kind, kinds.jobs, kinds.last_at, {example_columns(of="j.")}
        FROM kinds CROSS JOIN LATERAL ({_EXAMPLE.format(id="kinds.id")}) AS j
        WHERE {"j.method = %(method)s" if where.method is not None else "true"}
        ORDER BY CASE WHEN %(newest_first)s THEN 0 ELSE kinds.jobs END DESC, kinds.last_at DESC, j.id
        LIMIT %(limit)s
    """


_AMONG: Final = """
    SELECT '{state}' AS state, count(*) AS jobs FROM (
        SELECT FROM {{s}}.jobs WHERE {condition} LIMIT %(most)s) AS counted_few
"""
_QUEUE: Final = "SELECT j.queue FROM {s}.jobs AS j WHERE j.state = 'enqueued' AND j.queue <> ''"
# From one method and priority of a queue to the next, and after so many of them, as programs may use any
# number of priorities, to the next queue. What is asked of `number` alone is asked once, and not of each job.
_GROUPS_OF_QUEUES: Final = f"""
    part AS (
        (SELECT first.*, 1 AS number FROM (
            {GROUP} ORDER BY j.queue, {METHOD_NAME}, j.priority DESC LIMIT 1) AS first)
        UNION ALL
        SELECT next.queue, next.method, next.priority,
               CASE WHEN next.queue = part.queue THEN part.number + 1 ELSE 1 END
        FROM part
        CROSS JOIN LATERAL (
            SELECT * FROM (
                (SELECT 1 AS place, lower.* FROM (
                    {GROUP} AND part.number <= {MOST_GROUPS_OF_A_QUEUE} AND j.queue = part.queue
                      AND {METHOD_NAME} = part.method AND j.priority < part.priority
                    ORDER BY j.priority DESC LIMIT 1) AS lower)
                UNION ALL
                (SELECT 2, other.* FROM (
                    {GROUP} AND part.number <= {MOST_GROUPS_OF_A_QUEUE}
                      AND (j.queue, {METHOD_NAME}) > (part.queue, part.method)
                    ORDER BY j.queue, {METHOD_NAME}, j.priority DESC LIMIT 1) AS other)
                UNION ALL
                (SELECT 3, other.* FROM (
                    {GROUP} AND part.number > {MOST_GROUPS_OF_A_QUEUE} AND j.queue > part.queue
                    ORDER BY j.queue, {METHOD_NAME}, j.priority DESC LIMIT 1) AS other)
            ) AS either ORDER BY place LIMIT 1
        ) AS next
    )
"""
# At how many of the first jobs of a `part` the oldest is looked for: at more where its queue has few.
_HEADS: Final = "CASE {} ELSE 10 END".format(
    " ".join(
        f"WHEN part.groups_of_queue <= {groups}"
        f" THEN greatest(10, least({heads}, %(most)s::bigint / {groups}))"
        for groups, heads in HEADS_OF_GROUPS.items()
    )
)
# Of several claims a worker has begun the first.
_PROCESSING: Final = """
    SELECT queue, 0 AS enqueued, count(*) AS processing, count(*) FILTER (WHERE place > 1) AS held,
           NULL::timestamptz AS since
    FROM (
        SELECT queue, row_number() OVER (
            PARTITION BY coalesce(worker_id, id) ORDER BY started_at, priority DESC, created_at, id
        ) AS place
        FROM {s}.jobs WHERE state = 'processing'
    ) AS claim
    GROUP BY queue
"""

MONITORING: Final = MonitoringQueries(
    failure_kinds=_failure_kinds,
    failure_kinds_among=_failure_kinds_among,
    job_counts_among=" UNION ALL ".join(
        _AMONG.format(state=state, condition=condition_of(state)) for state in StateName
    ),
    queue_stats_among=f"""
        WITH RECURSIVE {_GROUPS_OF_QUEUES}, oldest AS (
            SELECT part.queue, min(first.since) AS since,
                   bool_or(part.number > {MOST_GROUPS_OF_A_QUEUE} OR first.read >= {_HEADS}) AS has_more
            FROM (SELECT *, max(number) OVER (PARTITION BY queue) AS groups_of_queue FROM part) AS part
            CROSS JOIN LATERAL (
                SELECT min(enqueued_at) AS since, count(*) AS read FROM (
                    SELECT j.enqueued_at FROM {{s}}.jobs AS j
                    WHERE j.state = 'enqueued' AND j.queue <> '' AND j.queue = part.queue
                      AND {METHOD_NAME} = part.method AND j.priority = part.priority
                    ORDER BY j.created_at LIMIT {_HEADS}) AS head) AS first
            GROUP BY part.queue
        )
        SELECT queue, sum(enqueued)::bigint AS enqueued, sum(processing)::bigint AS processing,
               sum(held)::bigint AS held, min(since) AS oldest_at,
               bool_or(has_more) AS has_more, now() AS now
        FROM (
            SELECT oldest.queue, counted.jobs AS enqueued, 0 AS processing, 0 AS held, oldest.since,
                   oldest.has_more
            FROM oldest CROSS JOIN LATERAL (
                SELECT count(*) AS jobs FROM (
                    {_QUEUE} AND j.queue = oldest.queue LIMIT %(most)s) AS counted_few) AS counted
            UNION ALL
            SELECT *, false FROM ({_PROCESSING}) AS processing
            UNION ALL
            SELECT DISTINCT queue, 0, 0, 0, NULL::timestamptz, false FROM (
                SELECT queue FROM {{s}}.jobs WHERE state IN ('scheduled', 'awaiting_retry')
                ORDER BY run_at LIMIT %(most)s) AS waiting
        ) AS part
        GROUP BY queue ORDER BY queue
    """,
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
    attempts=f"""
        SELECT {ATTEMPT_COLUMNS} FROM {{s}}.attempts WHERE job_id = %(id)s
        ORDER BY claim_seq DESC LIMIT %(newest)s::bigint
    """,
    # In parts, because each reads a small index of its own.
    queue_stats=f"""
        SELECT queue, sum(enqueued)::bigint AS enqueued, sum(processing)::bigint AS processing,
               sum(held)::bigint AS held, min(since) AS oldest_at, false AS has_more, now() AS now
        FROM (
            SELECT queue, count(*) AS enqueued, 0 AS processing, 0 AS held, min(enqueued_at) AS since
            FROM {{s}}.jobs WHERE state = 'enqueued' AND queue <> '' GROUP BY queue
            UNION ALL
            {_PROCESSING}
            UNION ALL
            SELECT queue, 0, 0, 0, NULL FROM {{s}}.jobs
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
    due_count=f"SELECT count(*) AS jobs {_DUE}",
    # Each ends with the first that it finds. What stands before it and is unknown or paused is passed over.
    has_due_work=f"""
        SELECT EXISTS (SELECT {_RUNNABLE_IN_QUEUES}) OR EXISTS (SELECT {_RUNNABLE_IN_ALL})
               OR EXISTS (SELECT {_HELD}) OR (%(with_waiting)s AND EXISTS (SELECT {_DUE})) AS found
    """,
    later_work=f"""
        SELECT count(*) AS jobs, min(run_at) AS due_at, now() AS now FROM {{s}}.jobs
        WHERE state IN ('scheduled', 'awaiting_retry') AND run_at > now()
          AND run_at <= COALESCE(now() + %(within)s::interval, 'infinity')
          AND {SERVED} AND {KNOWN} AND (%(paused)s OR {_NOT_PAUSED})
    """,
)
