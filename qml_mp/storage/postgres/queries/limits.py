"""Every process: what holds back the jobs of queues and methods."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.common import HOLDS_BACK, METHOD_NAME, Told
from qml_mp.storage.queries import LimitQueries

_TOLD: Final = f"pg_notify(%(channel)s, '{Told.MANY}') AS told"


def _set(columns: str, values: str) -> str:
    """Only these columns: another program may set others of the row at the same moment."""
    return f"""
        INSERT INTO {{s}}.limits (kind, name, {columns}) VALUES (%(kind)s, %(name)s, {values})
        ON CONFLICT (kind, name) DO UPDATE SET ({columns}) = ROW ({values})
        RETURNING {_TOLD}
    """


_ENTRY: Final = f"""
    SELECT j.queue, {METHOD_NAME} AS method, j.priority, j.created_at, j.id FROM {{s}}.jobs AS j
    WHERE j.state = 'enqueued' AND j.queue <> '' -- always true; see the index
"""
_FIRST: Final = f"ORDER BY j.queue, {METHOD_NAME}, j.priority DESC, j.created_at, j.id LIMIT 1"


def _waiting(start: str, after: str) -> str:
    """The head of each method of each queue, by steps as a claim goes."""
    return f"""
        WITH RECURSIVE head AS (
            {start}
            UNION ALL
            SELECT next.* FROM head AS h CROSS JOIN LATERAL ({_ENTRY} AND {after} {_FIRST}) AS next
        )
        SELECT * FROM head
        WHERE %(methods)s::text[] IS NULL OR method = ANY(%(methods)s::text[])
        ORDER BY priority DESC, created_at, id
    """


WITHOUT_OTHER_LIMITS: Final = f"""
    NOT EXISTS (
        SELECT FROM {{s}}.limits AS l
        WHERE {HOLDS_BACK} AND l.name = ANY(CASE l.kind WHEN 'queue' THEN %(kind_queues)s::text[]
                           ELSE %(kind_methods)s::text[] END)
          AND l.kind || ' ' || l.name <> ALL(%(kind_limits)s::text[]))
"""
"""Whether no limit is about the kinds that are to be claimed but those that were looked at for them: others
may have been set since."""

WITHIN_BOUNDS: Final = """
    j.priority >= coalesce(%(only_priority)s::integer, -2147483648)
    AND (j.created_at, j.id)
        < (coalesce(%(until_at)s::timestamptz, 'infinity'), coalesce(%(until_id)s::text, ''))
"""
"""What comes before a limited job, of kinds whose best have this priority. It is a part of the index, so
that a walk ends with it."""

LIMITS: Final = LimitQueries(
    any=f"SELECT FROM {{s}}.limits WHERE {HOLDS_BACK} LIMIT 1",
    standings=f"""
        WITH running AS MATERIALIZED (
            SELECT queue, {METHOD_NAME.replace("j.", "")} AS method, count(*) AS jobs
            FROM {{s}}.jobs WHERE state = 'processing' GROUP BY 1, 2
        ),
        -- One for all; not that of the transaction, which may have waited for a lock.
        clock AS MATERIALIZED (SELECT clock_timestamp() AS now)
        SELECT l.kind, l.name, l.paused, l.max_running, l.rate, l.per_us, l.next_at, clock.now,
               (SELECT coalesce(sum(r.jobs), 0)::bigint FROM running AS r
                WHERE CASE l.kind WHEN 'queue' THEN r.queue ELSE r.method END = l.name) AS running
        FROM {{s}}.limits AS l CROSS JOIN clock WHERE {HOLDS_BACK} ORDER BY l.kind, l.name
    """,
    waiting_in_all=_waiting(f"({_ENTRY} {_FIRST})", f"(j.queue, {METHOD_NAME}) > (h.queue, h.method)"),
    waiting_in_served=_waiting(
        "SELECT first.* FROM unnest(%(queues)s::text[]) AS served (queue) "
        f"CROSS JOIN LATERAL ({_ENTRY} AND j.queue = served.queue {_FIRST}) AS first",
        f"j.queue = h.queue AND {METHOD_NAME} > h.method",
    ),
    # Who comes second waits for the first one's commit, and counts what runs in a query of its own
    # afterwards.
    lock="""
        SELECT kind, name FROM {s}.limits
        WHERE kind = 'queue' AND name = %(queue)s OR kind = 'method' AND name = %(method)s
        ORDER BY kind, name FOR UPDATE
    """,
    spend="UPDATE {s}.limits SET next_at = %(next_at)s WHERE kind = %(kind)s AND name = %(name)s",
    tell_of_a_place=f"SELECT pg_notify(%(channel)s, '{Told.ONE_JOB}') AS told",
    set_paused=_set("paused", "%(paused)s"),
    set_max_running=_set("max_running", "%(max_running)s::integer"),
    set_rate=_set("rate, per_us", "%(rate)s::integer, %(per_us)s::bigint"),
    # SKIP LOCKED: a claim that has one of them in hand may wait for the limit that was just set. The row is
    # removed another time.
    remove_if_empty=f"""
        DELETE FROM {{s}}.limits
        WHERE (kind, name) IN (
            SELECT kind, name FROM {{s}}.limits
            WHERE NOT ({HOLDS_BACK}) AND (next_at IS NULL OR next_at <= clock_timestamp())
            FOR UPDATE SKIP LOCKED)
    """,
)
