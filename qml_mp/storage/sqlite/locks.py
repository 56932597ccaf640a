"""Every process: named locks in SQLite."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.storage.sqlite import sql_around
from qml_mp.storage.sqlite.instants import to_us
from qml_mp.storage.sqlite.part import Part


class NamedLocksPart(Part):
    """`NamedLocks` of the protocol."""

    def acquire_lock(self, resource: str, owner: str, ttl: timedelta) -> bool:
        with self._database.write() as connection:
            now = self.now()
            return connection.execute(
                sql_around.ACQUIRE_LOCK,
                {"resource": resource, "owner": owner, "expires_at": to_us(now + ttl), "now": to_us(now)},
            ).rowcount == 1  # fmt: skip

    def release_lock(self, resource: str, owner: str) -> bool:
        with self._database.write() as connection:
            return (
                connection.execute(sql_around.RELEASE_LOCK, {"resource": resource, "owner": owner}).rowcount
                == 1
            )

    def delete_expired_locks(self) -> int:
        with self._database.write() as connection:
            return connection.execute(sql_around.DELETE_EXPIRED_LOCKS, {"now": self._now_us()}).rowcount
