"""Client and worker: single values as JSON: how each type travels, and how it is rebuilt."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from numbers import Real
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any
from uuid import UUID

from qml_mp.core.payload import JsonValue
from qml_mp.errors import InvalidJob


@dataclass(frozen=True, slots=True)
class Codec:
    """The two directions of one annotation. The text names the place for errors, all `InvalidJob`."""

    encode: Callable[[Any, str], JsonValue]
    decode: Callable[[Any, str], Any]


def mismatch(value: object, wanted: str, where: str) -> InvalidJob:
    """The error for a value that is not what its annotation says. Shows the type, never the value."""
    return InvalidJob(f"{where[:300]} must be {wanted}, not {type(value).__name__}.")


def _integer(value: Any, where: str) -> int:
    try:
        return operator.index(value)  # numpy's integers too
    except TypeError:
        raise mismatch(value, "a whole number", where) from None


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise mismatch(value, "a number", where)
    try:
        return float(value)
    except OverflowError:
        raise InvalidJob(f"{where[:300]} is larger than any float; pass it as text.") from None


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise mismatch(value, "true or false", where)
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise mismatch(value, "text", where)
    return value


def _as_text(kind: type[Any], name: str, write: Callable[[Any], str], read: Callable[[str], Any]) -> Codec:
    """A type that travels as text; `read` raises ValueError (or InvalidOperation) for what is not one."""

    def encode(value: Any, where: str) -> str:
        if not isinstance(value, kind):
            raise mismatch(value, name, where)
        return write(value)

    def decode(value: Any, where: str) -> Any:
        try:
            return read(_text(value, where))
        except (ValueError, InvalidOperation) as error:
            if isinstance(error, InvalidJob):
                raise
            raise InvalidJob(f"{where[:300]} is not {name}: {str(error)[:200]}") from None

    return Codec(encode, decode)


def _seconds(value: Any, where: str) -> float:
    if not isinstance(value, timedelta):
        raise mismatch(value, "a timedelta", where)
    return value.total_seconds()


def _duration(value: Any, where: str) -> timedelta:
    seconds = _number(value, where)
    try:
        return timedelta(seconds=seconds)
    except (OverflowError, ValueError) as error:
        raise InvalidJob(f"{where[:300]} is not a number of seconds: {error}") from None


def _date(value: Any, where: str) -> str:
    if not isinstance(value, date) or isinstance(value, datetime):  # whose time of day would be lost
        raise mismatch(value, "a date", where)
    return value.isoformat()


_PATH = _as_text(PurePath, "a path", str, Path)

SCALARS: Mapping[Any, Codec] = MappingProxyType(
    {
        bool: Codec(_truth, _truth),
        int: Codec(_integer, _integer),
        float: Codec(_number, _number),
        str: Codec(_text, _text),
        datetime: _as_text(datetime, "an ISO 8601 date and time", datetime.isoformat, datetime.fromisoformat),
        date: Codec(_date, _as_text(date, "an ISO 8601 date", date.isoformat, date.fromisoformat).decode),
        time: _as_text(time, "an ISO 8601 time", time.isoformat, time.fromisoformat),
        timedelta: Codec(_seconds, _duration),
        UUID: _as_text(UUID, "a UUID", str, UUID),
        Decimal: _as_text(Decimal, "a decimal number", str, Decimal),
        Path: _PATH,
        PurePath: _PATH,
    }
)
"""By annotation. Numbers of seconds stand for durations, text for the rest."""
