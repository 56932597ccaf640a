"""Every process: templates of recurring jobs."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.queries import RecurringQueries
from qml_mp.storage.rows import TEMPLATE_COLUMNS
from qml_mp.storage.sqlite.queries.common import KNOWN

_TEMPLATE: Final = f"{TEMPLATE_COLUMNS}, :now AS now"

RECURRING: Final = RecurringQueries(
    insert_or_lock=f"""
        INSERT INTO qml_recurring_jobs (
            id, cron, tz, method, payload, queue, enabled, next_run_at, created_at)
        VALUES (:id, :cron, :tz, :method, :payload, :queue, :enabled, :next_run_at, :created_at)
        -- Changes nothing, but gives the row back.
        ON CONFLICT (id) DO UPDATE SET id = excluded.id
        RETURNING {_TEMPLATE}
    """,
    replace="""
        UPDATE qml_recurring_jobs
        SET cron = :cron, tz = :tz, method = :method, payload = :payload, queue = :queue, enabled = :enabled,
            next_run_at = :next_run_at, disabled_reason = :disabled_reason
        WHERE id = :id
    """,
    switch="""
        UPDATE qml_recurring_jobs
        SET enabled = :enabled, next_run_at = :next_run_at, disabled_reason = :disabled_reason
        WHERE id = :id
    """,
    remove="DELETE FROM qml_recurring_jobs WHERE id = :id",
    get=f"SELECT {_TEMPLATE} FROM qml_recurring_jobs WHERE id = :id",
    list_all=f"SELECT {_TEMPLATE} FROM qml_recurring_jobs ORDER BY id",
    lock_due=f"""
        SELECT {_TEMPLATE} FROM qml_recurring_jobs
        WHERE enabled AND next_run_at <= :now AND {KNOWN}
        -- Limited so that a tick holds the write lock for a bounded time.
        ORDER BY next_run_at, id LIMIT :limit
    """,
    advance="UPDATE qml_recurring_jobs SET next_run_at = :next_run_at, last_run_at = :now WHERE id = :id",
    next_firing=f"""
        SELECT min(next_run_at) FILTER (WHERE {KNOWN}) AS due_at, min(next_run_at) AS first_at, :now AS now
        FROM qml_recurring_jobs WHERE enabled
    """,
    unknown=f"""
        SELECT id, method FROM qml_recurring_jobs
        WHERE enabled AND next_run_at <= :now AND NOT {KNOWN} ORDER BY id
    """,
    bring_forward="""
        UPDATE qml_recurring_jobs SET next_run_at = :next_run_at
        -- Guarded by what was read, because another server may have been first.
        WHERE id = :id AND enabled AND next_run_at = :late
    """,
)
