"""Every process: the SQL of schema, templates, registry, locks and monitoring; conventions as in `sql`."""

from __future__ import annotations

from qml_mp.storage.rows import SAME_TEMPLATE

# Schema

FIND_VERSIONS = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = %(schema)s) AS has_schema,
       EXISTS (
           SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
           WHERE n.nspname = %(schema)s AND c.relname = 'schema_version'
       ) AS has_versions
"""
"""What is there; asked first, because a SELECT from a missing table is an error. From the catalogue's
tables, because to_regclass may answer from a cache that another starter's migration has outdated."""

VERSION = "SELECT coalesce(max(version), 0) AS version FROM {s}.schema_version"
"""The version of the schema."""

LOCK_MIGRATION = "SELECT pg_advisory_xact_lock(hashtextextended(%(channel)s, 0))"
"""Held until the commit: of several starters one migrates, and the others then find it done."""

PATIENCE = "SELECT set_config('lock_timeout', '60s', true), set_config('statement_timeout', '600s', true)"
"""In this transaction: time for another starter's migration, and for building an index."""

CREATE_SCHEMA = "CREATE SCHEMA IF NOT EXISTS {s}"
"""Where everything of ours lives; run when it is not there, since a role may be allowed to use a schema
and not to create any."""

CREATE_VERSIONS = """
CREATE TABLE IF NOT EXISTS {s}.schema_version (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""
"""Which migrations were applied."""

ADD_VERSION = "INSERT INTO {s}.schema_version (version) VALUES (%(version)s)"
"""Note that a migration was applied."""

NOW = "SELECT clock_timestamp() AS now"
"""The server's clock."""

IDENTITY = """
SELECT current_database() AS database, pg_postmaster_start_time() AS started_at, inet_server_port() AS port,
       (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AS schema_oid
"""
"""What tells this database from every other; needs no privilege."""

# Recurring templates

_TEMPLATE = (
    "t.id, t.cron, t.tz, t.method, t.queue, t.enabled, t.next_run_at, t.last_run_at, t.created_at, "
    "t.disabled_reason, t.payload"
)

UPSERT_TEMPLATE = f"""
WITH kept AS (
    INSERT INTO {{s}}.recurring_jobs AS held (id, cron, tz, method, payload, queue, enabled, next_run_at,
                                           created_at)
    VALUES (%(id)s, %(cron)s, %(tz)s, %(method)s, %(payload)s, %(queue)s, %(enabled)s, %(next_run_at)s,
            %(created_at)s)
    ON CONFLICT (id) DO UPDATE
    SET cron = excluded.cron, tz = excluded.tz, method = excluded.method, payload = excluded.payload,
        queue = excluded.queue,
        enabled = held.enabled OR (held.disabled_reason IS NOT NULL AND NOT ({SAME_TEMPLATE})),
        disabled_reason = CASE WHEN {SAME_TEMPLATE} THEN held.disabled_reason END,
        next_run_at = CASE
            WHEN held.cron = excluded.cron AND held.tz = excluded.tz AND held.disabled_reason IS NULL
            THEN held.next_run_at ELSE excluded.next_run_at END
    RETURNING id
)
SELECT pg_notify(%(channel)s, '') FROM kept
"""
"""Insert or replace. The next firing stays when the schedule does; `enabled` stays as a person set it,
but a template that qml-mp itself switched off gets another chance once it is another one."""

REMOVE_TEMPLATE = "DELETE FROM {s}.recurring_jobs WHERE id = %(id)s RETURNING id"
GET_TEMPLATE = "SELECT " + _TEMPLATE + " FROM {s}.recurring_jobs AS t WHERE t.id = %(id)s"
LIST_TEMPLATES = "SELECT " + _TEMPLATE + " FROM {s}.recurring_jobs AS t ORDER BY t.id"
"""Single templates and all of them."""

SET_ENABLED = """
WITH switched AS (
    UPDATE {s}.recurring_jobs SET enabled = %(enabled)s, next_run_at = %(next_run_at)s, disabled_reason = NULL
    WHERE id = %(id)s RETURNING id
)
SELECT pg_notify(%(channel)s, '') FROM switched
"""
"""Switch a template on or off by hand."""

LOCK_DUE_TEMPLATES = (
    "SELECT now() AS now, "
    + _TEMPLATE
    + """ FROM {s}.recurring_jobs AS t
WHERE t.enabled AND t.next_run_at <= now()
  AND (%(methods)s::text[] IS NULL OR t.method = ANY(%(methods)s::text[]))
ORDER BY t.next_run_at, t.id
-- Locked until the commit, and passed over by the others: two servers never fire the same tick.
LIMIT %(limit)s FOR UPDATE SKIP LOCKED
"""
)
"""Templates whose time has come."""

NEXT_FIRING = """
SELECT greatest(next_run_at - now(), interval '0') AS next_due_in FROM {s}.recurring_jobs
WHERE enabled AND next_run_at IS NOT NULL
  AND (%(methods)s::text[] IS NULL OR method = ANY(%(methods)s::text[]))
ORDER BY next_run_at, id LIMIT 1
"""
"""How long until the next template is due that this server may fire; no row when none waits."""

UNKNOWN_TEMPLATES = """
SELECT id, method FROM {s}.recurring_jobs
WHERE enabled AND next_run_at <= now() AND method <> ALL(%(methods)s::text[]) ORDER BY id
"""
"""Due templates that run what this server does not know."""

BRING_FORWARD = """
WITH hastened AS (
    UPDATE {s}.recurring_jobs SET next_run_at = %(next_run_at)s
    -- Guarded by what was read, because another server may have been first.
    WHERE id = %(id)s AND enabled AND next_run_at = %(late)s RETURNING id
)
SELECT id, pg_notify(%(channel)s, '') AS told FROM hastened
"""
"""After the clock was set back."""

ADVANCE_TEMPLATE = (
    "UPDATE {s}.recurring_jobs SET next_run_at = %(next_run_at)s, last_run_at = now() WHERE id = %(id)s"
)
DISABLE_TEMPLATE = """
UPDATE {s}.recurring_jobs SET enabled = false, next_run_at = NULL, disabled_reason = %(reason)s
WHERE id = %(id)s
"""
"""What a firing leaves behind; run under the lock taken by LOCK_DUE_TEMPLATES."""
