"""Every process: rows as PostgreSQL takes many of them, as one array for each column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.adapt import PyFormat
from psycopg.types.array import BaseListDumper, ListBinaryDumper

from qml_mp.storage.database import Values

_TEXT_ARRAY = psycopg.postgres.types["text"].array_oid


def array_of(values: list[object]) -> object:
    """The list as PostgreSQL writes an array, if it holds text and integers alone. The driver takes several
    times as long, and prepares another statement for each size of integers."""
    parts = []
    for value in values:
        if type(value) is str:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f'"{escaped}"')
        elif type(value) is int:
            parts.append(str(value))
        elif value is None:
            parts.append("NULL")
        else:
            return values
    return f"{{{','.join(parts)}}}"


def send_arrays_in_binary(cursor: psycopg.Cursor[Any]) -> None:
    """For a session that is not ours: how it reads NULL in an array that is written as text is a setting."""
    cursor.adapters.register_dumper(list, _BinaryDumper)


class _BinaryDumper(ListBinaryDumper):
    """psycopg's writes a list that has nothing but NULL as text."""

    def upgrade(self, obj: list[Any], format: PyFormat) -> BaseListDumper:
        dumper = super().upgrade(obj, format)
        if not isinstance(dumper, ListBinaryDumper):
            dumper = _BinaryDumper(self.cls, self._tx)
            dumper.oid = _TEXT_ARRAY  # each array is cast to the type that it is meant as
        return dumper


def columns_of(rows: Sequence[Values]) -> dict[str, object]:
    return {name: [row[name] for row in rows] for name in rows[0]}
