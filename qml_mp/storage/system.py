"""Every process: what servers tell of themselves, and what the storage takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.core.server_description import ServerDescription, read_description
from qml_mp.storage.database import Operations
from qml_mp.storage.rows import int_of, optional_text_of, text_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSize:
    """One table, or all of a backend that tells them together."""

    name: str
    size_bytes: int
    """With its indexes."""
    live_rows: int | None
    """As statistics estimate them; None: not told."""
    dead_rows: int | None
    """Versions of rows that nobody sees any more, not yet vacuumed; None: there are no such."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSize:
    """What a storage takes."""

    version: str
    """Of the database."""
    size_bytes: int
    free_bytes: int | None
    """Of these, what is kept for new rows; None: not told."""
    tables: tuple[TableSize, ...]
    """The largest first."""


class SystemFacts(Operations):
    """What is told of the system itself."""

    def describe_server(self, server_id: str, description: ServerDescription) -> bool:
        """Replace what it tells of itself; False: it is not registered."""
        values = {"server_id": server_id, "description": description.to_text()}
        # Of no use once the machine has gone down.
        with self._db.transaction("describing a server", durable=False) as transaction:
            written = transaction.run(self._db.queries.system.describe, values)
        return written.count == 1

    def server_descriptions(self) -> Mapping[str, ServerDescription]:
        """By the id of each registered server."""
        rows = self._db.read("reading what servers tell", self._db.queries.system.descriptions)
        return {text_of(row["id"]): read_description(optional_text_of(row["description"])) for row in rows}

    def told_timeouts(self) -> Mapping[str, timedelta]:
        """The `dead_server_timeout` of each registered server that has told it, by id: it may beat so rarely
        that by a shorter one it is dead between two beats."""
        told = self.server_descriptions().items()
        timeouts = {server_id: description.duration("dead_server_timeout") for server_id, description in told}
        return {server_id: timeout for server_id, timeout in timeouts.items() if timeout is not None}

    def size(self) -> StorageSize:
        """How large it is. A role that may not see statistics gets zeros."""
        rows = self._db.read("measuring the storage", self._db.queries.system.size)
        tables = tuple(
            TableSize(
                name=text_of(row["name"]),
                size_bytes=int_of(row["bytes"]) or 0,
                live_rows=int_of(row["live_rows"]),
                dead_rows=int_of(row["dead_rows"]),
            )
            for row in rows
        )
        log_bytes = self._db.connection.log_bytes()
        if log_bytes is not None:
            log = TableSize(name="its log", size_bytes=log_bytes, live_rows=None, dead_rows=None)
            tables = tuple(sorted((*tables, log), key=lambda table: -table.size_bytes))
        free = [int_of(row["free_bytes"]) for row in rows]
        return StorageSize(
            version=text_of(rows[0]["version"]) if rows else "",
            size_bytes=sum(table.size_bytes for table in tables),
            free_bytes=sum(each or 0 for each in free) if any(each is not None for each in free) else None,
            tables=tables,
        )
