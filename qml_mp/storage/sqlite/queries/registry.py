"""Every process: runs of supervisors, their workers, and named locks."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.queries import RegistryQueries
from qml_mp.storage.rows import SERVER_COLUMNS, WORKER_COLUMNS

REGISTRY: Final = RegistryQueries(
    register_server=f"""
        INSERT OR REPLACE INTO qml_servers ({SERVER_COLUMNS})
        VALUES (
            :id, :name, :hostname, :host, :pid, :started_ticks, :worker_count, :queues, :started_at, :now,
            :heartbeat_enabled, :methods, :paused, :trouble, :answers, :acts)
    """,
    update_server="""
        UPDATE qml_servers
        SET queues = :queues, methods = :methods, paused = :paused, trouble = :trouble, answers = :answers
        WHERE id = :server_id
    """,
    heartbeat="""
        UPDATE qml_servers SET last_heartbeat = :now WHERE id = :server_id
        RETURNING (SELECT count(*) FROM qml_servers) AS servers, EXISTS (
            SELECT 1 FROM qml_acts WHERE qml_acts.server_id = :server_id AND state = 'asked') AS asked
    """,
    list_servers=f"SELECT {SERVER_COLUMNS} FROM qml_servers ORDER BY started_at, id",
    silent_servers=f"""
        SELECT {SERVER_COLUMNS} FROM qml_servers
        WHERE heartbeat_enabled AND id <> :own_id AND last_heartbeat NOT BETWEEN :now - :timeout AND :now
        ORDER BY started_at, id
    """,
    has_server="SELECT 1 FROM qml_servers WHERE id = :server_id",
    remove_idle_server="""
        DELETE FROM qml_servers
        WHERE id = :server_id
          AND NOT EXISTS (SELECT 1 FROM qml_jobs WHERE state = 'processing' AND server_id = :server_id)
    """,
    lock_server="SELECT 1 FROM qml_servers WHERE id = :server_id",  # the write lock is held
    # `:now` was read under the write lock, and no heartbeat comes in until it is released.
    remove_server="""
        DELETE FROM qml_servers
        WHERE id = :server_id AND (
            :silent_for IS NULL
            OR (last_heartbeat < :now - :silent_for OR last_heartbeat = :newest)
               AND (:judge IS NULL OR EXISTS (
                   SELECT 1 FROM qml_servers
                   WHERE id = :judge AND last_heartbeat BETWEEN :now - :silent_for / 2 AND :now)))
    """,
    # The write lock is held.
    lock_workers_of="SELECT id FROM qml_workers WHERE server_id = :server_id",
    remove_workers_of="DELETE FROM qml_workers WHERE server_id = :server_id",
    set_worker_rss="""
        UPDATE qml_workers SET rss_bytes = size.value
        FROM json_each(:ids) AS worker JOIN json_each(:rss_bytes) AS size USING (key)
        WHERE qml_workers.id = worker.value AND server_id = :server_id
    """,
    register_worker=f"""
        INSERT INTO qml_workers AS held ({WORKER_COLUMNS})
        SELECT :id, :server_id, :number, :host, :pid, :started_ticks, :started_at, :rss_bytes, :epoch
        WHERE EXISTS (SELECT 1 FROM qml_servers WHERE id = :server_id)
        ON CONFLICT (id) DO UPDATE
        SET server_id = excluded.server_id, number = excluded.number, host = excluded.host,
            pid = excluded.pid, started_ticks = excluded.started_ticks, started_at = excluded.started_at,
            rss_bytes = excluded.rss_bytes,
            -- Never lowered: what was sent under an epoch that is over must not claim anything again.
            epoch = max(held.epoch, excluded.epoch)
    """,
    raise_epoch="UPDATE qml_workers SET epoch = epoch + 1 WHERE id = :worker_id RETURNING epoch",
    remove_worker="DELETE FROM qml_workers WHERE id = :id",
    list_workers=f"SELECT {WORKER_COLUMNS} FROM qml_workers ORDER BY server_id, number, id",
    acquire_lock="""
        INSERT INTO qml_locks AS held (resource, owner, expires_at) VALUES (:resource, :owner, :now + :ttl)
        ON CONFLICT (resource) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
        WHERE held.owner = excluded.owner OR held.expires_at <= :now
    """,
    # One that has expired was lost, also when nobody has taken it: whether the row is there still, a cleanup
    # decides.
    renew_lock="""
        UPDATE qml_locks SET expires_at = :now + :ttl
        WHERE resource = :resource AND owner = :owner AND expires_at > :now
    """,
    lock_holder="SELECT owner FROM qml_locks WHERE resource = :resource AND expires_at > :now",
    next_number="""
        INSERT INTO qml_counters (name, value) VALUES (:name, 1)
        ON CONFLICT (name) DO UPDATE SET value = value + 1
        RETURNING value
    """,
    release_lock="""
        DELETE FROM qml_locks WHERE resource = :resource AND owner = :owner
        RETURNING expires_at > :now AS was_held
    """,
    any_expired_lock="""
        SELECT 1 AS expired FROM qml_locks INDEXED BY qml_locks_expiring WHERE expires_at <= :now LIMIT 1
    """,
    delete_expired_locks="""
        DELETE FROM qml_locks WHERE rowid IN (
            SELECT rowid FROM qml_locks INDEXED BY qml_locks_expiring
            WHERE expires_at <= :now ORDER BY expires_at LIMIT :limit)
    """,
)
