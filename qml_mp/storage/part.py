"""Every process: what the parts of the storage share."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from qml_mp.core.job import Claim
from qml_mp.storage.database import Database
from qml_mp.storage.rows import Row, claim_of


class Part:
    """Some operations of the storage on the one database."""

    _db: Database

    def _claims_of(self, rows: Iterable[Row]) -> list[Claim]:
        """The claims of rows that are Processing."""
        return [claim_of(row, self._db.instant) for row in rows]

    def _between(self, row: Row, start: str, end: str) -> timedelta | None:
        """How long it is from one of the row's instants to another; zero when that has passed, None when
        there is none."""
        started_at, ended_at = self._db.instant(row[start]), self._db.instant(row[end])
        return None if started_at is None or ended_at is None else max(ended_at - started_at, timedelta())
