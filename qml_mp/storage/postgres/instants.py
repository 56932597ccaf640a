"""Every process: instants as the driver gives them, and those that Python cannot hold."""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader, Transformer
from psycopg.pq import Format

from qml_mp.storage.rows import Columns


def instant_of(value: object) -> datetime | None:
    """The aware UTC instant of a column; None for NULL and for what is no instant."""
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo is UTC else value.astimezone(UTC)


class _InstantLoader(Loader):
    """Reads as NULL an instant that Python cannot hold."""

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        strict = psycopg.adapters.get_loader(oid, Format.TEXT)
        assert strict is not None  # one of psycopg's own types
        self._strict = strict(oid, context)

    def load(self, data: Buffer) -> object:
        try:
            return self._strict.load(data)
        except psycopg.DataError:
            return None


def without_unreadable_instants(cursor: psycopg.Cursor[Columns]) -> list[Columns]:
    """The rows of a result that the driver's own loaders refuse, because another program has written an
    instant that Python cannot hold. Read so only then: a loader in Python costs every row of every result."""
    cursor.adapters.register_loader("timestamptz", _InstantLoader)
    loaders = Transformer(cursor)
    loaders.set_pgresult(cursor.pgresult)
    return loaders.load_rows(0, cursor.rowcount, tuple)
