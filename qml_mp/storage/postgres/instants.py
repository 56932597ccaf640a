"""Every process: instants as psycopg gives them, aware and in the session's time zone, UTC."""

from __future__ import annotations

from datetime import UTC, datetime


def from_column(value: object) -> datetime | None:
    """The instant of a column; None for NULL."""
    return value.astimezone(UTC) if isinstance(value, datetime) else None
