"""Every process: what the parts of the storage share."""

from __future__ import annotations

from qml_mp.storage.database import Database


class Part:
    """Some operations of the storage on the one database."""

    _db: Database
