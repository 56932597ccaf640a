"""Client and worker: single values as JSON: how each type travels, and how it is rebuilt."""

from __future__ import annotations

import operator
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from functools import partial
from numbers import Integral, Real
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, TypeVar
from uuid import UUID

from qml_mp.core.payload import JsonValue
from qml_mp.errors import InvalidJob

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Codec:
    """The two directions of one annotation. The text names the place for errors, all `InvalidJob`."""

    encode: Callable[[Any, str], JsonValue]
    decode: Callable[[Any, str], Any]


class UnusableAnnotation(InvalidJob):
    """Nothing of the kind can travel, whatever the value is."""


class Mistakable(InvalidJob):
    """What would be stored of the value would be read as another one."""


def mismatch(value: object, wanted: str, where: str) -> InvalidJob:
    """The error for a value that is not what its annotation says. Shows the type, never the value."""
    if type(value).__qualname__ == wanted:
        return InvalidJob(
            f"{where[:300]} must be {wanted}, and is of another class of that name: of another module, or of "
            "one defined earlier or later. In a notebook, run the cell of the function again."
        )
    return InvalidJob(f"{where[:300]} must be {wanted}, not {type(value).__name__}.")


def named(hint: Any) -> str:
    """An annotation as errors name it."""
    if hint is type(None):
        return "None"
    return hint.__qualname__ if isinstance(hint, type) else str(hint).removeprefix("typing.")


def _integer(value: Any, where: str) -> int:
    try:
        return operator.index(value)  # numpy's integers too
    except TypeError:
        raise mismatch(value, "a whole number", where) from None


def _number(value: Any, where: str) -> float:
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise mismatch(value, "a number", where)
    try:
        return float(value)
    except OverflowError:
        raise InvalidJob(f"{where[:300]} is larger than any float; pass it as text.") from None


def _kept_number(value: Any, where: str) -> float:
    number = _number(value, where)
    # Compared as whole numbers, because numpy's compare with a float as floats.
    if number is not value and isinstance(value, Integral) and number != int(value):
        raise InvalidJob(
            f"{where[:300]} is a whole number that no float holds; pass it as an int or as text."
        )
    return number


def _only(kind: type[_T], name: str) -> Callable[[Any, str], _T]:
    def check(value: Any, where: str) -> _T:
        if not isinstance(value, kind):
            raise mismatch(value, name, where)
        return value

    return check


_truth = _only(bool, "true or false")
_text = _only(str, "text")


def _written_truth(value: Any, where: str) -> bool:
    if getattr(value, "shape", None) == () and str(getattr(value, "dtype", "")) == "bool":
        return bool(value)  # numpy's, as `a > b` of its numbers is one
    return _truth(value, where)


def _plain_text(value: Any, where: str) -> str:
    return value if type(value) is str else str.__str__(_text(value, where))  # what it is read as


_timedelta = _only(timedelta, "a timedelta")


def _as_text(kind: type[Any], name: str, write: Callable[[Any], str], read: Callable[[str], Any]) -> Codec:
    """A type that travels as text; `read` raises ValueError (or InvalidOperation) for what is not one."""
    check = _only(kind, name)

    def decode(value: Any, where: str) -> Any:
        text = _text(value, where)
        try:
            return read(text)
        except (ValueError, InvalidOperation) as error:
            raise InvalidJob(f"{where[:300]} is not {name}: {str(error)[:200]}") from None

    return Codec(lambda value, where: write(check(value, where)), decode)


def _seconds(value: Any, where: str) -> float:
    seconds = _timedelta(value, where).total_seconds()
    try:
        is_kept = timedelta(seconds=seconds) == value
    except OverflowError:  # timedelta.max: the float is larger
        is_kept = False
    if not is_kept:
        raise InvalidJob(
            f"{where[:300]} is so long, or so exact, a duration that a number of seconds does not keep it; "
            "leave out the microseconds, or pass None where it has no end."
        )
    return seconds


def _duration(value: Any, where: str) -> timedelta:
    seconds = _number(value, where)
    try:
        return timedelta(seconds=seconds)
    except (OverflowError, ValueError) as error:
        raise InvalidJob(f"{where[:300]} is not a number of seconds: {error}") from None


_any_instant = _as_text(datetime, "an ISO 8601 date and time", datetime.isoformat, datetime.fromisoformat)


def _instant(value: Any, where: str) -> JsonValue:
    text = _any_instant.encode(value, where)
    if type(value) is datetime:
        return text
    # pandas' NaT is one by its class, and would be the first day of the year 1. The zone is put back, since
    # what the clocks show twice is never equal to the same in another zone.
    if _any_instant.decode(text, where).replace(tzinfo=value.tzinfo, fold=value.fold) == value:
        return text
    raise InvalidJob(
        f"{where[:300]} is a {type(value).__name__} that no datetime holds, as NaT and nanoseconds are; pass "
        "None or text in its place."
    )


def _date(value: Any, where: str) -> str:
    if not isinstance(value, date) or isinstance(value, datetime):  # whose time of day would be lost
        raise mismatch(value, "a date", where)
    return value.isoformat()


_any_time = _as_text(time, "an ISO 8601 time", time.isoformat, time.fromisoformat)


def _time(value: Any, where: str) -> JsonValue:
    text = _any_time.encode(value, where)
    if value.tzinfo is not None and value.utcoffset() is None:
        raise InvalidJob(
            f"{where[:300]} is a time in a zone whose offset depends on the day, which its text would lose; "
            "pass the time without its zone, and the zone's name beside it."
        )
    return text


def _bytes(value: Any, where: str) -> str:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise mismatch(value, "bytes", where)
    return b2a_base64(value, newline=False).decode()


BYTES = Codec(_bytes, _as_text(bytes, "base64", repr, partial(a2b_base64, strict_mode=True)).decode)
"""By annotation alone: a text that stands for bytes looks as any other."""


def _copy(value: Any, where: str) -> Any:
    """Lists and objects are the function's to change; the payload is read by others after it."""
    if type(value) is list:
        return [_copy(item, where) for item in value]
    if type(value) is dict:
        return {key: _copy(item, where) for key, item in value.items()}
    return value


ANYTHING = Codec(lambda value, _: value, _copy)
"""Where an annotation says nothing: the value is JSON already."""


_PATH = _as_text(PurePath, "a path", str, Path)

SCALARS: Mapping[Any, Codec] = MappingProxyType(
    {
        bool: Codec(_written_truth, _truth),
        int: Codec(_integer, _integer),
        float: Codec(_kept_number, _number),
        str: Codec(_plain_text, _text),
        datetime: Codec(_instant, _any_instant.decode),
        date: Codec(_date, _as_text(date, "an ISO 8601 date", date.isoformat, date.fromisoformat).decode),
        time: Codec(_time, _any_time.decode),
        timedelta: Codec(_seconds, _duration),
        UUID: _as_text(UUID, "a UUID", str, UUID),
        Decimal: _as_text(Decimal, "a decimal number", str, Decimal),
        Path: _PATH,
        PurePath: _PATH,
    }
)
"""By annotation. Numbers of seconds stand for durations, text for the rest."""
