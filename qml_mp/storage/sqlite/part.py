"""Every process: what the parts of the SQLite storage share."""

from __future__ import annotations

from datetime import datetime

from qml_mp.storage.sqlite.connection import ProcessConnection
from qml_mp.storage.sqlite.instants import to_us


class Part:
    """A part of the storage: some operations of the protocol on the one database."""

    def __init__(self, database: ProcessConnection) -> None:
        self._database = database

    def now(self) -> datetime:
        """The database's clock: for SQLite that of this machine, as injected."""
        return self._database.clock.now()

    def _now_us(self) -> int:
        return to_us(self.now())
