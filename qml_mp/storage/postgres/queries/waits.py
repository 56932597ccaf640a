"""Every process: waiting for the ends of jobs."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.common import JOB
from qml_mp.storage.telling_queries import WaitQueries

WAITS: Final = WaitQueries(
    ended=f"""
        SELECT asked.id AS asked_id, {JOB}
        FROM unnest(%(ids)s::text[]) AS asked (id) LEFT JOIN {{s}}.jobs AS j ON j.id = asked.id
        WHERE j.id IS NULL OR j.state IN ('succeeded', 'failed', 'deleted')
    """,
    begin="""
        INSERT INTO {s}.waits (job_id, waiter, until)
        SELECT id, %(waiter)s, now() + %(ttl)s::interval FROM unnest(%(ids)s::text[]) AS asked (id)
        ON CONFLICT (job_id, waiter) DO UPDATE SET until = excluded.until
    """,
    end="DELETE FROM {s}.waits WHERE job_id = ANY(%(ids)s::text[]) AND waiter = %(waiter)s",
)
