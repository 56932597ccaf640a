"""Every process: templates of recurring jobs."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.common import KNOWN, Told, counted
from qml_mp.storage.recurring_queries import RecurringQueries
from qml_mp.storage.rows import TEMPLATE_COLUMNS

_TEMPLATE: Final = f"""
    {TEMPLATE_COLUMNS}, now() AS now,
    (SELECT j.state FROM {{s}}.jobs AS j WHERE j.id = last_job_id) AS last_job_state
"""

# The states as the index has them.
_UNFINISHED: Final = "state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry')"

# Compared as the column of the jobs is sorted: by the order of the other one, no index of it could be used,
# and each firing that waits would read the jobs of all templates.
_NEED_WAIT_NO_LONGER: Final = f"""
    waiting_for IS NOT NULL AND (overlap = 'allow' OR NOT EXISTS (
        SELECT FROM {{s}}.jobs AS j
        WHERE j.recurring_id = recurring_jobs.id COLLATE "default" AND j.{_UNFINISHED}))
"""

# A zone that this server lacks is left to others.
_HERE: Final = f"{KNOWN} AND tz <> ALL(%(lacking)s::text[])"

_OF_A_JOB: Final = """
    id, recurring_id, fire_at, state, created_at, started_at, finished_at, last_error_type, last_error_message
"""

RECURRING: Final = RecurringQueries(
    insert_or_lock=f"""
        WITH declared AS (
            INSERT INTO {{s}}.recurring_jobs
                (id, cron, tz, method, payload, queue, priority, misfire, overlap, jitter_us, app, enabled,
                 next_run_at, created_at)
            VALUES (%(id)s, %(cron)s, %(tz)s, %(method)s, %(payload)s, %(queue)s, %(priority)s, %(misfire)s,
                    %(overlap)s, %(jitter_us)s, %(app)s, %(enabled)s, %(next_run_at)s, %(created_at)s)
            -- Changes nothing, but waits for who is inserting or changing it, locks it and gives it back.
            ON CONFLICT (id) DO UPDATE SET id = excluded.id
            -- Read once it is locked; now() is when the transaction began.
            RETURNING {_TEMPLATE}, clock_timestamp() AS locked_at
        )
        SELECT *, pg_notify(%(channel)s, '{Told.NO_JOB}') AS told FROM declared
    """,
    replace="""
        UPDATE {s}.recurring_jobs
        SET cron = %(cron)s, tz = %(tz)s, method = %(method)s, payload = %(payload)s, queue = %(queue)s,
            priority = %(priority)s, misfire = %(misfire)s, overlap = %(overlap)s,
            jitter_us = %(jitter_us)s, app = %(app)s, enabled = %(enabled)s,
            next_run_at = %(next_run_at)s, disabled_reason = %(disabled_reason)s
        WHERE id = %(id)s
    """,
    switch=counted("""
        UPDATE {s}.recurring_jobs
        SET enabled = %(enabled)s, next_run_at = %(next_run_at)s, disabled_reason = %(disabled_reason)s,
            waiting_for = NULL
        WHERE id = %(id)s AND (%(cron)s::text IS NULL
            OR cron = %(cron)s::text AND tz = %(tz)s::text AND (NOT enabled OR next_run_at IS NULL))
        RETURNING id
    """),
    remove="DELETE FROM {s}.recurring_jobs WHERE id = %(id)s",
    remove_of="""
        DELETE FROM {s}.recurring_jobs
        WHERE app = %(app)s AND id = ANY(%(ids)s::text[]) AND method = ANY(%(methods)s::text[])
        RETURNING id
    """,
    get=f"SELECT {_TEMPLATE} FROM {{s}}.recurring_jobs WHERE id = %(id)s",
    lock=f"SELECT {_TEMPLATE} FROM {{s}}.recurring_jobs WHERE id = %(id)s FOR UPDATE",
    list_all=f"SELECT {_TEMPLATE} FROM {{s}}.recurring_jobs ORDER BY id",
    lock_due=f"""
        SELECT {_TEMPLATE} FROM {{s}}.recurring_jobs
        WHERE enabled AND (next_run_at <= now() OR {_NEED_WAIT_NO_LONGER}) AND {_HERE}
        ORDER BY misfire NOT IN ('fire_once', 'skip')
                 AND coalesce(waiting_for, next_run_at) < now() - interval '1 minute',
                 coalesce(waiting_for, next_run_at), id
        -- Locked until the commit, and passed over by the others: two servers never fire the same tick.
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    """,
    unfinished=f"SELECT id FROM {{s}}.jobs WHERE recurring_id = %(id)s AND {_UNFINISHED} LIMIT 1",
    advance="""
        UPDATE {s}.recurring_jobs
        SET next_run_at = %(next_run_at)s, waiting_for = %(waiting_for)s,
            last_job_id = coalesce(%(last_job_id)s::text, last_job_id),
            last_run_at = CASE WHEN %(last_job_id)s::text IS NULL THEN last_run_at ELSE now() END
        WHERE id = %(id)s
    """,
    next_firing=f"""
        SELECT min(due_at) FILTER (WHERE {_HERE} AND id <> ALL(%(refused)s::text[])) AS due_at,
               min(due_at) AS first_at,
               count(waiting_for) FILTER (WHERE {_HERE}) AS waiting, now() AS now
        FROM (
            SELECT id, method, tz, waiting_for,
                   CASE WHEN {_NEED_WAIT_NO_LONGER} THEN now() ELSE next_run_at END AS due_at
            FROM {{s}}.recurring_jobs WHERE enabled
        ) AS template
    """,
    unknown=f"""
        SELECT id, method FROM {{s}}.recurring_jobs
        WHERE enabled AND next_run_at <= now() AND NOT {KNOWN} ORDER BY id
    """,
    correct=counted("""
        UPDATE {s}.recurring_jobs SET next_run_at = %(next_run_at)s
        -- Guarded by what was read, because another server may have been first.
        WHERE id = %(id)s AND enabled AND next_run_at = %(wrong)s RETURNING id
    """),
    # Those by hand are few, and sorted: along the ids, the planner would walk over all jobs to find some.
    newest_jobs=f"""
        SELECT {_OF_A_JOB} FROM unnest(%(ids)s::text[]) AS wanted (template_id) CROSS JOIN LATERAL (
            (SELECT {_OF_A_JOB} FROM {{s}}.jobs
             WHERE recurring_id = wanted.template_id AND fire_at IS NOT NULL
             ORDER BY fire_at DESC LIMIT %(limit)s)
            UNION ALL
            (SELECT {_OF_A_JOB} FROM {{s}}.jobs
             WHERE recurring_id = wanted.template_id AND fire_at IS NULL
             ORDER BY id || '' DESC LIMIT %(limit)s)
        ) AS made
    """,
)
