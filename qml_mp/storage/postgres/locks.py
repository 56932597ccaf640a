"""Every process: named locks in PostgreSQL."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.storage.postgres import sql_around
from qml_mp.storage.postgres.part import Part


class NamedLocksPart(Part):
    """`NamedLocks` of the protocol."""

    def acquire_lock(self, resource: str, owner: str, ttl: timedelta) -> bool:
        wanted = {"resource": resource, "owner": owner, "ttl": ttl}
        return bool(self._database.rows("acquiring a lock", sql_around.ACQUIRE_LOCK, wanted))

    def release_lock(self, resource: str, owner: str) -> bool:
        which = {"resource": resource, "owner": owner}
        return bool(self._database.rows("releasing a lock", sql_around.RELEASE_LOCK, which))

    def delete_expired_locks(self) -> int:
        return len(self._database.rows("deleting expired locks", sql_around.DELETE_EXPIRED_LOCKS))
