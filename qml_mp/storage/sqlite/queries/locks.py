"""Every process: named locks."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.queries import LockQueries

LOCKS: Final = LockQueries(
    acquire="""
        INSERT INTO qml_locks AS held (resource, owner, expires_at) VALUES (:resource, :owner, :now + :ttl)
        ON CONFLICT (resource) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
        WHERE held.owner = excluded.owner OR held.expires_at <= :now
    """,
    release="DELETE FROM qml_locks WHERE resource = :resource AND owner = :owner",
    delete_expired="DELETE FROM qml_locks WHERE expires_at <= :now",
)
