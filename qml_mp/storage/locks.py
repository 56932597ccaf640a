"""Every process: named locks."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.storage.part import Part


class NamedLocks(Part):
    """Locks with a name, an owner and a time to live, by the database's clock."""

    def acquire_lock(self, resource: str, owner: str, ttl: timedelta) -> bool:
        """Create, take over when expired, refresh for the same owner; False: another holds it."""
        wanted = {"resource": resource, "owner": owner, "ttl": ttl}
        return self._db.write("acquiring a lock", self._db.queries.locks.acquire, wanted).count == 1

    def release_lock(self, resource: str, owner: str) -> bool:
        """Whether this owner held it."""
        which = {"resource": resource, "owner": owner}
        return self._db.write("releasing a lock", self._db.queries.locks.release, which).count == 1

    def delete_expired_locks(self) -> int:
        """How many rows of expired locks were deleted."""
        return self._db.write("deleting expired locks", self._db.queries.locks.delete_expired).count
