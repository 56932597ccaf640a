"""Every process: templates of recurring jobs."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.recurring_queries import RecurringQueries
from qml_mp.storage.rows import TEMPLATE_COLUMNS
from qml_mp.storage.sqlite.instants import FIRST_US
from qml_mp.storage.sqlite.queries.common import KNOWN

_TEMPLATE: Final = f"""
    {TEMPLATE_COLUMNS}, :now AS now, (SELECT state FROM qml_jobs WHERE id = last_job_id) AS last_job_state
"""

# As the index has it, word for word.
_UNFINISHED: Final = """
    recurring_id IS NOT NULL AND state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry')
"""

_NEED_WAIT_NO_LONGER: Final = f"""
    waiting_for IS NOT NULL AND (overlap = 'allow' OR NOT EXISTS (
        SELECT 1 FROM qml_jobs WHERE recurring_id = qml_recurring_jobs.id AND {_UNFINISHED}))
"""

# A zone that this server lacks is left to others.
_HERE: Final = f"{KNOWN} AND tz NOT IN (SELECT value FROM json_each(:lacking))"

RECURRING: Final = RecurringQueries(
    insert_or_lock=f"""
        INSERT INTO qml_recurring_jobs (
            id, cron, tz, method, payload, queue, priority, misfire, overlap, jitter_us, app, enabled,
            next_run_at, created_at)
        VALUES (:id, :cron, :tz, :method, :payload, :queue, :priority, :misfire, :overlap, :jitter_us, :app,
                :enabled, :next_run_at, :created_at)
        -- Changes nothing, but gives the row back.
        ON CONFLICT (id) DO UPDATE SET id = excluded.id
        RETURNING {_TEMPLATE}, :now AS locked_at -- the write lock was held before
    """,
    replace="""
        UPDATE qml_recurring_jobs
        SET cron = :cron, tz = :tz, method = :method, payload = :payload, queue = :queue,
            priority = :priority, misfire = :misfire, overlap = :overlap, jitter_us = :jitter_us, app = :app,
            enabled = :enabled, next_run_at = :next_run_at, disabled_reason = :disabled_reason
        WHERE id = :id
    """,
    switch="""
        UPDATE qml_recurring_jobs
        SET enabled = :enabled, next_run_at = :next_run_at, disabled_reason = :disabled_reason,
            waiting_for = NULL
        -- As text, as which they were read: another program may have written bytes.
        WHERE id = :id AND (:cron IS NULL OR CAST(cron AS TEXT) = :cron AND CAST(tz AS TEXT) = :tz
            AND (NOT enabled OR next_run_at IS NULL))
    """,
    remove="DELETE FROM qml_recurring_jobs WHERE id = :id",
    remove_of="""
        DELETE FROM qml_recurring_jobs
        WHERE app = :app AND id IN (SELECT value FROM json_each(:ids))
          AND method IN (SELECT value FROM json_each(:methods))
        RETURNING id
    """,
    get=f"SELECT {_TEMPLATE} FROM qml_recurring_jobs WHERE id = :id",
    lock=f"SELECT {_TEMPLATE} FROM qml_recurring_jobs WHERE id = :id",  # the write lock is held
    list_all=f"SELECT {_TEMPLATE} FROM qml_recurring_jobs ORDER BY id",
    lock_due=f"""
        SELECT {_TEMPLATE} FROM qml_recurring_jobs
        WHERE enabled AND (next_run_at <= :now OR {_NEED_WAIT_NO_LONGER}) AND {_HERE}
        ORDER BY misfire NOT IN ('fire_once', 'skip')
                 AND COALESCE(waiting_for, next_run_at) < :now - 60 * 1000000,
                 COALESCE(waiting_for, next_run_at), id
        -- Limited so that a tick holds the write lock for a bounded time.
        LIMIT :limit
    """,
    unfinished=f"SELECT id FROM qml_jobs WHERE recurring_id = :id AND {_UNFINISHED} LIMIT 1",
    advance="""
        UPDATE qml_recurring_jobs
        SET next_run_at = :next_run_at, waiting_for = :waiting_for,
            last_job_id = COALESCE(:last_job_id, last_job_id),
            last_run_at = CASE WHEN :last_job_id IS NULL THEN last_run_at ELSE :now END
        WHERE id = :id
    """,
    next_firing=f"""
        SELECT max({FIRST_US}, min(due_at) FILTER (
                   WHERE {_HERE} AND id NOT IN (SELECT value FROM json_each(:refused)))) AS due_at,
               max({FIRST_US}, min(due_at)) AS first_at,
               count(waiting_for) FILTER (WHERE {_HERE}) AS waiting, :now AS now
        FROM (
            SELECT id, method, tz, waiting_for,
                   CASE WHEN {_NEED_WAIT_NO_LONGER} THEN :now ELSE next_run_at END AS due_at
            FROM qml_recurring_jobs WHERE enabled
        )
    """,
    unknown=f"""
        SELECT id, method FROM qml_recurring_jobs
        WHERE enabled AND next_run_at <= :now AND NOT {KNOWN} ORDER BY id
    """,
    correct="""
        UPDATE qml_recurring_jobs SET next_run_at = :next_run_at
        -- Guarded by what was read, because another server may have been first.
        WHERE id = :id AND enabled AND next_run_at = :wrong
    """,
    # Those by hand are few, and sorted: along the ids, all jobs would be walked over to find some.
    newest_jobs="""
        SELECT j.id, j.recurring_id, j.fire_at, j.state, j.created_at, j.started_at, j.finished_at,
               j.last_error_type, j.last_error_message
        FROM json_each(:ids) AS wanted CROSS JOIN qml_jobs AS j ON j.rowid IN (
            SELECT rowid FROM (
                SELECT rowid FROM qml_jobs WHERE recurring_id = wanted.value AND fire_at IS NOT NULL
                ORDER BY fire_at DESC LIMIT :limit)
            UNION ALL
            SELECT rowid FROM (
                SELECT rowid FROM qml_jobs WHERE recurring_id = wanted.value AND fire_at IS NULL
                ORDER BY +id DESC LIMIT :limit))
    """,
)
