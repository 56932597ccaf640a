"""Every process: rows as PostgreSQL takes many of them, as one array for each column."""

from __future__ import annotations

from collections.abc import Sequence

from qml_mp.storage.database import Values


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


def columns_of(rows: Sequence[Values]) -> dict[str, object]:
    return {name: [row[name] for row in rows] for name in rows[0]}
