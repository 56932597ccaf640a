"""Every process: the statements about what stands around the jobs in SQLite: templates, servers, locks.

The rules are those of `sql`.
"""

from __future__ import annotations

from typing import Final

from qml_mp.storage.rows import SAME_TEMPLATE

# Recurring templates

# Insert or replace. The next firing stays when the schedule does; `enabled` stays as a person set
# it, but a template that qml-mp itself switched off is given another chance once it is another one.
UPSERT_TEMPLATE: Final = f"""
    INSERT INTO qml_recurring_jobs AS held (
        id, cron, tz, method, payload, queue, enabled, next_run_at, last_run_at, created_at, disabled_reason)
    VALUES (:id, :cron, :tz, :method, :payload, :queue, :enabled, :next_run_at, NULL, :created_at, NULL)
    ON CONFLICT (id) DO UPDATE
    SET cron = excluded.cron, tz = excluded.tz, method = excluded.method, payload = excluded.payload,
        queue = excluded.queue,
        enabled = held.enabled OR (held.disabled_reason IS NOT NULL AND NOT ({SAME_TEMPLATE})),
        disabled_reason = CASE WHEN {SAME_TEMPLATE} THEN held.disabled_reason END,
        next_run_at = CASE
            WHEN held.cron = excluded.cron AND held.tz = excluded.tz AND held.disabled_reason IS NULL
            THEN held.next_run_at ELSE excluded.next_run_at END
"""

REMOVE_TEMPLATE: Final = "DELETE FROM qml_recurring_jobs WHERE id = :id"

_TEMPLATE: Final = """
    id, cron, tz, method, payload, queue, enabled, next_run_at, last_run_at, created_at,
    disabled_reason
"""
GET_TEMPLATE: Final = f"SELECT {_TEMPLATE} FROM qml_recurring_jobs WHERE id = :id"
LIST_TEMPLATES: Final = f"SELECT {_TEMPLATE} FROM qml_recurring_jobs ORDER BY id"

SET_ENABLED: Final = """
    UPDATE qml_recurring_jobs SET enabled = :enabled, next_run_at = :next_run_at, disabled_reason = NULL
    WHERE id = :id
"""

_KNOWN: Final = "(:any_method OR method IN (SELECT value FROM json_each(:methods)))"

# Templates whose time has come, oldest first; limited so that a tick holds the lock for a bounded
# time. Read under the write lock: two servers never see the same firing.
DUE_TEMPLATES: Final = f"""
    SELECT {_TEMPLATE} FROM qml_recurring_jobs
    WHERE enabled AND next_run_at <= :now AND {_KNOWN} ORDER BY next_run_at, id LIMIT :limit
"""

# When the next template is due that this server may fire.
NEXT_FIRING: Final = f"SELECT min(next_run_at) FROM qml_recurring_jobs WHERE enabled AND {_KNOWN}"

# Due templates that run what this server does not know.
UNKNOWN_TEMPLATES: Final = f"""
    SELECT id, method FROM qml_recurring_jobs
    WHERE enabled AND next_run_at <= :now AND NOT {_KNOWN} ORDER BY id
"""

# After the clock was set back; guarded by what was read, because another server may have been first.
BRING_FORWARD: Final = """
    UPDATE qml_recurring_jobs SET next_run_at = :next_run_at
    WHERE id = :id AND enabled AND next_run_at = :late
"""
ADVANCE_TEMPLATE: Final = """
    UPDATE qml_recurring_jobs SET next_run_at = :next_run_at, last_run_at = :now WHERE id = :id
"""
DISABLE_TEMPLATE: Final = """
    UPDATE qml_recurring_jobs SET enabled = 0, next_run_at = NULL, disabled_reason = :reason WHERE id = :id
"""
