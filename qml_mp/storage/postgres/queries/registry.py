"""Every process: runs of supervisors, their workers, and named locks."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.telling import OF_A_PLACE
from qml_mp.storage.queries import RegistryQueries
from qml_mp.storage.rows import SERVER_COLUMNS, WORKER_COLUMNS

# A worker that was killed behind its last success had no time to tell of the place that this has left.
_TELLING: Final = f"RETURNING {OF_A_PLACE}"

REGISTRY: Final = RegistryQueries(
    register_server=f"""
        INSERT INTO {{s}}.servers ({SERVER_COLUMNS})
        VALUES (%(id)s, %(name)s, %(hostname)s, %(host)s, %(pid)s, %(started_ticks)s, %(worker_count)s,
                %(queues)s, %(started_at)s, now(), %(heartbeat_enabled)s, %(methods)s, %(paused)s,
                %(trouble)s, %(answers)s, %(acts)s)
        ON CONFLICT (id) DO UPDATE
        SET name = excluded.name, hostname = excluded.hostname, host = excluded.host, pid = excluded.pid,
            started_ticks = excluded.started_ticks, worker_count = excluded.worker_count,
            queues = excluded.queues, started_at = excluded.started_at,
            last_heartbeat = excluded.last_heartbeat, heartbeat_enabled = excluded.heartbeat_enabled,
            methods = excluded.methods, paused = excluded.paused, trouble = excluded.trouble,
            answers = excluded.answers, acts = excluded.acts
    """,
    update_server="""
        UPDATE {s}.servers
        SET queues = %(queues)s, methods = %(methods)s, paused = %(paused)s, trouble = %(trouble)s,
            answers = %(answers)s
        WHERE id = %(server_id)s
    """,
    heartbeat="""
        UPDATE {s}.servers SET last_heartbeat = now() WHERE id = %(server_id)s
        RETURNING (SELECT count(*) FROM {s}.servers) AS servers, EXISTS (
            SELECT FROM {s}.acts WHERE acts.server_id = %(server_id)s AND state = 'asked') AS asked
    """,
    list_servers=f"SELECT {SERVER_COLUMNS} FROM {{s}}.servers ORDER BY started_at, id",
    silent_servers=f"""
        SELECT {SERVER_COLUMNS} FROM {{s}}.servers
        WHERE heartbeat_enabled AND id <> %(own_id)s
          AND last_heartbeat NOT BETWEEN now() - %(timeout)s::interval AND clock_timestamp()
        ORDER BY started_at, id
    """,
    has_server="SELECT id FROM {s}.servers WHERE id = %(server_id)s",
    remove_idle_server="""
        DELETE FROM {s}.servers
        -- Its workers' rows are gone, and who was claiming has been waited for: there is no other claim.
        WHERE id = %(server_id)s
          AND NOT EXISTS (SELECT FROM {s}.jobs WHERE state = 'processing' AND server_id = %(server_id)s)
    """,
    lock_server="SELECT id FROM {s}.servers WHERE id = %(server_id)s FOR UPDATE",
    remove_server="""
        DELETE FROM {s}.servers
        WHERE id = %(server_id)s AND (
            %(silent_for)s::interval IS NULL
            -- Judged again by the newest row when a heartbeat comes in at this moment.
            OR (last_heartbeat < now() - %(silent_for)s::interval
                OR last_heartbeat = %(newest)s::timestamptz)
               AND (%(judge)s::text IS NULL OR EXISTS (
                   SELECT FROM {s}.servers
                   WHERE id = %(judge)s
                     AND last_heartbeat BETWEEN now() - %(silent_for)s::interval / 2 AND now())))
    """,
    # Waits for the claims that these workers are making, and keeps them from more.
    lock_workers_of="SELECT id FROM {s}.workers WHERE server_id = %(server_id)s ORDER BY id FOR UPDATE",
    remove_workers_of=f"DELETE FROM {{s}}.workers WHERE server_id = %(server_id)s {_TELLING}",
    set_worker_rss="""
        UPDATE {s}.workers AS w SET rss_bytes = m.rss_bytes
        FROM unnest(%(ids)s::text[], %(rss_bytes)s::bigint[]) AS m (id, rss_bytes)
        WHERE w.id = m.id AND w.server_id = %(server_id)s
    """,
    register_worker=f"""
        INSERT INTO {{s}}.workers AS held ({WORKER_COLUMNS})
        -- The server's row is locked, so that who removes it at the same time removes the worker's too.
        SELECT %(id)s, server.id, %(number)s::integer, %(host)s, %(pid)s::integer, %(started_ticks)s::bigint,
               %(started_at)s::timestamptz, %(rss_bytes)s::bigint, %(epoch)s::integer
        FROM (SELECT id FROM {{s}}.servers WHERE id = %(server_id)s FOR KEY SHARE) AS server
        ON CONFLICT (id) DO UPDATE
        SET server_id = excluded.server_id, number = excluded.number, host = excluded.host,
            pid = excluded.pid, started_ticks = excluded.started_ticks, started_at = excluded.started_at,
            rss_bytes = excluded.rss_bytes,
            -- Never lowered: what was sent under an epoch that is over must not claim anything again.
            epoch = greatest(held.epoch, excluded.epoch)
    """,
    # FOR UPDATE waits for a claim that the worker is making: its KEY SHARE would let a mere UPDATE pass.
    # From the commit on, no claim is made under an earlier epoch.
    raise_epoch="""
        UPDATE {s}.workers SET epoch = epoch + 1
        WHERE id = (SELECT id FROM {s}.workers WHERE id = %(worker_id)s FOR UPDATE)
        RETURNING epoch
    """,
    remove_worker=f"DELETE FROM {{s}}.workers WHERE id = %(id)s {_TELLING}",
    list_workers=f"SELECT {WORKER_COLUMNS} FROM {{s}}.workers ORDER BY server_id, number, id",
    acquire_lock="""
        INSERT INTO {s}.locks AS held (resource, owner, expires_at)
        VALUES (%(resource)s, %(owner)s, now() + %(ttl)s::interval)
        ON CONFLICT (resource) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
        WHERE held.owner = excluded.owner OR held.expires_at <= now()
    """,
    # One that has expired was lost, also when nobody has taken it: whether the row is there still, a cleanup
    # decides.
    renew_lock="""
        UPDATE {s}.locks SET expires_at = now() + %(ttl)s::interval
        WHERE resource = %(resource)s AND owner = %(owner)s AND expires_at > now()
    """,
    lock_holder="SELECT owner FROM {s}.locks WHERE resource = %(resource)s AND expires_at > now()",
    next_number="""
        INSERT INTO {s}.counters AS c (name, value) VALUES (%(name)s, 1)
        ON CONFLICT (name) DO UPDATE SET value = c.value + 1
        RETURNING value
    """,
    release_lock="""
        DELETE FROM {s}.locks WHERE resource = %(resource)s AND owner = %(owner)s
        RETURNING expires_at > now() AS was_held
    """,
    any_expired_lock=None,
    # With the last of them what waiters have left that were killed: to find it, all waits are read.
    delete_expired_locks="""
        WITH old AS MATERIALIZED (
            SELECT resource FROM {s}.locks
            -- The second condition is that of the index.
            WHERE expires_at <= now() AND expires_at > '-infinity'
            -- SKIP LOCKED: some transaction may hold one for long.
            ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        ), waits AS (
            DELETE FROM {s}.waits WHERE (SELECT count(*) FROM old) < %(limit)s AND ctid = ANY(ARRAY(
                -- SKIP LOCKED: one whose waiter is just renewing it, with others and in another order.
                SELECT ctid FROM {s}.waits WHERE until <= now() FOR UPDATE SKIP LOCKED))
        )
        DELETE FROM {s}.locks WHERE resource = ANY(ARRAY(SELECT resource FROM old))
    """,
)
