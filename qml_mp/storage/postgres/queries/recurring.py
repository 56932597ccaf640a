"""Every process: templates of recurring jobs."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.common import KNOWN, Told, counted
from qml_mp.storage.queries import RecurringQueries
from qml_mp.storage.rows import TEMPLATE_COLUMNS

_TEMPLATE: Final = f"{TEMPLATE_COLUMNS}, now() AS now"

RECURRING: Final = RecurringQueries(
    insert_or_lock=f"""
        WITH declared AS (
            INSERT INTO {{s}}.recurring_jobs (id, cron, tz, method, payload, queue, enabled, next_run_at,
                                              created_at)
            VALUES (%(id)s, %(cron)s, %(tz)s, %(method)s, %(payload)s, %(queue)s, %(enabled)s,
                    %(next_run_at)s, %(created_at)s)
            -- Changes nothing, but waits for who is inserting or changing it, locks it and gives it back.
            ON CONFLICT (id) DO UPDATE SET id = excluded.id
            RETURNING {_TEMPLATE}
        )
        SELECT *, pg_notify(%(channel)s, '{Told.NO_JOB}') AS told FROM declared
    """,
    replace="""
        UPDATE {s}.recurring_jobs
        SET cron = %(cron)s, tz = %(tz)s, method = %(method)s, payload = %(payload)s, queue = %(queue)s,
            enabled = %(enabled)s, next_run_at = %(next_run_at)s, disabled_reason = %(disabled_reason)s
        WHERE id = %(id)s
    """,
    switch=counted("""
        UPDATE {s}.recurring_jobs
        SET enabled = %(enabled)s, next_run_at = %(next_run_at)s, disabled_reason = %(disabled_reason)s
        WHERE id = %(id)s RETURNING id
    """),
    remove="DELETE FROM {s}.recurring_jobs WHERE id = %(id)s",
    get=f"SELECT {_TEMPLATE} FROM {{s}}.recurring_jobs WHERE id = %(id)s",
    list_all=f"SELECT {_TEMPLATE} FROM {{s}}.recurring_jobs ORDER BY id",
    lock_due=f"""
        SELECT {_TEMPLATE} FROM {{s}}.recurring_jobs
        WHERE enabled AND next_run_at <= now() AND {KNOWN}
        ORDER BY next_run_at, id
        -- Locked until the commit, and passed over by the others: two servers never fire the same tick.
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    """,
    advance="""
        UPDATE {s}.recurring_jobs SET next_run_at = %(next_run_at)s, last_run_at = now() WHERE id = %(id)s
    """,
    next_firing=f"""
        SELECT min(next_run_at) FILTER (WHERE {KNOWN}) AS due_at, min(next_run_at) AS first_at, now() AS now
        FROM {{s}}.recurring_jobs WHERE enabled
    """,
    unknown=f"""
        SELECT id, method FROM {{s}}.recurring_jobs
        WHERE enabled AND next_run_at <= now() AND NOT {KNOWN} ORDER BY id
    """,
    bring_forward=counted("""
        UPDATE {s}.recurring_jobs SET next_run_at = %(next_run_at)s
        -- Guarded by what was read, because another server may have been first.
        WHERE id = %(id)s AND enabled AND next_run_at = %(late)s RETURNING id
    """),
)
