"""Every process: what the parts of the storage share."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.storage.database import Database, Row


class Part:
    """Some operations of the storage on the one database."""

    _db: Database

    def _between(self, row: Row, start: str, end: str) -> timedelta | None:
        """How long it is from one of the row's instants to another; zero when that has passed, None when
        there is none."""
        started_at, ended_at = self._db.instant(row[start]), self._db.instant(row[end])
        return None if started_at is None or ended_at is None else max(ended_at - started_at, timedelta())
