"""Anywhere: durations, sizes and numbers as people write them ("5m", "512MiB", "1 job"), read and printed."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import TypeVar

from qml_mp.errors import ConfigurationError, shown

Duration = timedelta | float | str
"""What the edges accept as a duration: a `timedelta`, a number of seconds, or text like "1h30m"."""

Size = int | str
"""What the edges accept as a size: a number of bytes, or text like "512MiB"."""

LONGEST = timedelta(days=36_525)
"""The longest duration, a hundred years: the clock and a few of them are within the calendar, and one in
nanoseconds is a number of 64 bits. What is to be without an end says None where it can."""

_LONGEST_S = LONGEST.total_seconds()
_MOST_DOUBLED = 30  # a millisecond is twelve days by then
_Pause = TypeVar("_Pause", float, timedelta)
_SECONDS_PER_UNIT = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DATE_OR_SECONDS = re.compile(r"(?:19|20)(?:\d\d){1,3}")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d|w)")
_BYTES_PER_UNIT = {
    "": 1, "b": 1,
    "k": 1024, "kib": 1024, "kb": 1000,
    "m": 1024**2, "mib": 1024**2, "mb": 1000**2,
    "g": 1024**3, "gib": 1024**3, "gb": 1000**3,
}  # fmt: skip
_BEYOND_ANY_MEMORY = 2**63
_MOST_DIGITS = 18
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)")


def doubled(first: _Pause, times: int, *, longest: _Pause) -> _Pause:
    """A pause that doubles so many times, at most the longest. However often: no float holds what the 1024th
    time would make."""
    return min(first * (1 << min(times, _MOST_DOUBLED)), longest)


def parse_duration(value: Duration, *, what: str = "duration") -> timedelta:
    """Read a duration; a bare number is seconds, text joins parts like "1h30m" or "250ms".

    Raises `ConfigurationError` naming `what` when the value is negative, not finite, longer than `LONGEST` or
    unreadable.
    """
    if isinstance(value, timedelta):
        seconds = value.total_seconds()
    elif isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _bad_duration(value, what)
    elif isinstance(value, str):
        seconds = _seconds_of_text(value, what)
    else:
        seconds = math.inf if value > _LONGEST_S else -1.0 if value < 0 else float(value)
    if not seconds >= 0:  # as NaN is not
        raise _bad_duration(value, what)
    if seconds > _LONGEST_S:
        raise _too_long(value, what)
    return timedelta(seconds=seconds)


def check_longest(duration: timedelta, *, what: str) -> timedelta:
    """Return the duration, or raise `ConfigurationError` naming `what` when it is longer than `LONGEST`."""
    if duration > LONGEST:
        raise _too_long(duration, what)
    return duration


def check_no_date(text: str, *, what: str, as_date: str) -> None:
    """Raise `ConfigurationError` naming `what` for a bare number that may be meant as a date: 2030, 203001 or
    20300131. Who takes the one for the other deletes the jobs of months. `as_date`: how to give that."""
    if _DATE_OR_SECONDS.fullmatch(text.strip()):
        raise ConfigurationError(
            f"{what} is {shown(text)}, which may be a date or seconds: write {text.strip()}s, or {as_date}."
        )


def format_duration(value: timedelta) -> str:
    """Print a duration in the largest units that lose nothing a reader wants: "1h30m", "2.5s", "40ms"."""
    seconds = value.total_seconds()
    if seconds < 0:
        return "-" + format_duration(-value)
    if seconds < 0.9995:  # what would round up to the next unit is printed in it
        return f"{seconds * 1000:.3g}ms" if seconds else "0s"
    if seconds < 59.95:
        return f"{seconds:.3g}s"
    parts = []
    whole = round(seconds)
    for unit in ("d", "h", "m", "s"):
        count, whole = divmod(whole, int(_SECONDS_PER_UNIT[unit]))
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts[:2])


def format_exactly(value: timedelta) -> str:
    """Print a duration so that `parse_duration` reads the same: as `format_duration` does, or else in the
    largest unit of which it is a multiple."""
    text = format_duration(value)
    if parse_duration(text) == value:
        return text
    units = ((name, timedelta(seconds=each)) for name, each in reversed(_SECONDS_PER_UNIT.items()))
    return next(f"{value // unit}{name}" for name, unit in units if not value % unit)


def parse_size(value: Size, *, what: str = "size") -> int:
    """Read a size in bytes; "512MiB", "512M" and "1.5g" are binary, "KB", "MB" and "GB" decimal.

    Raises `ConfigurationError` naming `what` when the value is negative, 2**63 or more, or unreadable.
    """
    text = value if isinstance(value, str) else shown(value)
    match = _SIZE.fullmatch(text.strip().lower())
    if isinstance(value, bool) or match is None or match[2] not in _BYTES_PER_UNIT:
        raise ConfigurationError(
            f'{what} is {shown(value)}; it must be a size such as 536870912, "512MiB" or "2G".'
        )
    size_bytes = float(match[1]) * _BYTES_PER_UNIT[match[2]]
    if size_bytes >= _BEYOND_ANY_MEMORY:
        raise ConfigurationError(
            f"{what} is {shown(value)}; it must be less than {_BEYOND_ANY_MEMORY} bytes."
        )
    return int(size_bytes)


def format_size(size_bytes: int) -> str:
    """Print a size in binary units: "512.0 MiB"."""
    scaled = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if scaled < (1024 if unit == "B" else 1023.95) or unit == "GiB":  # as with durations
            break
        scaled /= 1024
    return f"{size_bytes} B" if unit == "B" else f"{scaled:.1f} {unit}"


def n_jobs(count: int) -> str:
    """ "1 job", "3 jobs"."""
    return f"{count} job{'' if count == 1 else 's'}"


def n_workers(count: int) -> str:
    """ "1 worker", "3 workers"."""
    return f"{count} worker{'' if count == 1 else 's'}"


def is_whole_number(text: str) -> bool:
    """Whether it is one of decimal digits that is within 64 bits. Python reads none of thousands of them."""
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def _seconds_of_text(text: str, what: str) -> float:
    compact = text.strip().lower().replace(" ", "")
    try:
        return float(compact)
    except ValueError:
        pass
    parts = _DURATION_PART.findall(compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise _bad_duration(text, what)
    return sum(float(number) * _SECONDS_PER_UNIT[unit] for number, unit in parts)


def _bad_duration(value: object, what: str) -> ConfigurationError:
    return ConfigurationError(
        f'{what} is {shown(value)}; it must be zero or more seconds, or text such as "90s", "5m" or "1h30m".'
    )


def _too_long(value: object, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} is {shown(value)}; it must be at most {format_duration(LONGEST)} (a hundred years)."
    )


def in_seconds(duration: timedelta | None) -> float | None:
    """A duration in JSON: seconds, to the millisecond."""
    return None if duration is None else round(duration.total_seconds(), 3)
