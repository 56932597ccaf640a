"""Every process: instants as SQLite holds them, whole microseconds since 1970 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
"""The first instant that Python can hold. What is before it is no instant, and yet due."""


def to_us(instant: datetime) -> int:
    """The number for an aware instant."""
    return (instant - _EPOCH) // _MICROSECOND


def from_us(value: object) -> datetime | None:
    """The aware UTC instant of a column; None for NULL and for what is no instant."""
    if not isinstance(value, int):
        return None
    try:
        return _EPOCH + timedelta(microseconds=value)
    except OverflowError:
        return None
