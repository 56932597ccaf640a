"""Every process: waiting for the ends of jobs."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.common import JOB
from qml_mp.storage.telling_queries import WaitQueries

_LONG_BYTES: Final = 1_048_576
"""When so much has been found, the rest is left for another statement: over a slow link one that brought all
would be cancelled each time. So many as one result may have: many handles need no better link than one."""

WAITS: Final = WaitQueries(
    ended=f"""
        SELECT j.asked_id, j.found, {JOB}
        FROM (
            SELECT asked.id AS asked_id, j.*, count(*) OVER () AS found,
                -- All that may be long. What lies out of line is not read for it.
                sum(
                    octet_length(coalesce(j.payload, '')) + octet_length(coalesce(j.metadata, ''))
                    + octet_length(coalesce(j.result, ''))
                    + octet_length(coalesce(j.last_error_traceback, ''))
                ) OVER (ORDER BY asked.id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
            FROM unnest(%(ids)s::text[]) AS asked (id)
            -- LIMIT: each job is looked up by itself, however many the planner expects.
            LEFT JOIN LATERAL (SELECT * FROM {{s}}.jobs WHERE id = asked.id LIMIT 1) AS j ON true
            WHERE j.id IS NULL OR j.state IN ('succeeded', 'failed', 'deleted')
        ) AS j
        WHERE j.bytes_before IS NULL OR j.bytes_before < {_LONG_BYTES}
    """,
    begin="""
        INSERT INTO {s}.waits (job_id, waiter, until)
        SELECT id, %(waiter)s, now() + %(ttl)s::interval FROM unnest(%(ids)s::text[]) AS asked (id)
        ON CONFLICT (job_id, waiter) DO UPDATE SET until = excluded.until
    """,
    end="DELETE FROM {s}.waits WHERE job_id = ANY(%(ids)s::text[]) AND waiter = %(waiter)s",
)
