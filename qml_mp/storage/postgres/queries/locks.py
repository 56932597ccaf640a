"""Every process: named locks."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.queries import LockQueries

LOCKS: Final = LockQueries(
    acquire="""
        INSERT INTO {s}.locks AS held (resource, owner, expires_at)
        VALUES (%(resource)s, %(owner)s, now() + %(ttl)s::interval)
        ON CONFLICT (resource) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
        WHERE held.owner = excluded.owner OR held.expires_at <= now()
    """,
    release="DELETE FROM {s}.locks WHERE resource = %(resource)s AND owner = %(owner)s",
    delete_expired="DELETE FROM {s}.locks WHERE expires_at <= now()",
)
