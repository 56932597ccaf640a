"""Every process: instants as the driver gives them, and those that Python cannot hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

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


def read_iso_instants(connection: psycopg.Connection[Any]) -> None:
    """Have the connection read instants by what each transaction sets, where the driver would go by the
    session's DateStyle. Of that the server tells when a transaction has ended, and it is the role's again."""
    if not (connection.pgconn.parameter_status(b"DateStyle") or b"ISO").startswith(b"ISO"):
        connection.adapters.register_loader("timestamptz", _IsoLoader)


class _IsoLoader(Loader):
    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        strict = psycopg.adapters.get_loader(oid, Format.TEXT)
        assert strict is not None  # one of psycopg's own types
        self._strict = strict(oid, None)  # which knows of no session

    def load(self, data: Buffer) -> object:
        return self._strict.load(data)


class _InstantLoader(_IsoLoader):
    """Reads as NULL an instant that Python cannot hold."""

    def load(self, data: Buffer) -> object:
        try:
            return super().load(data)
        except psycopg.DataError:
            return None


def without_unreadable_instants(cursor: psycopg.Cursor[Columns]) -> list[Columns]:
    """The rows of a result that the driver's own loaders refuse, because another program has written an
    instant that Python cannot hold. Read so only then: a loader in Python costs every row of every result."""
    cursor.adapters.register_loader("timestamptz", _InstantLoader)
    loaders = Transformer(cursor)
    loaders.set_pgresult(cursor.pgresult)
    return loaders.load_rows(0, cursor.rowcount, tuple)
