"""Anywhere: the fields of a cron expression, read.

The meaning is Unix cron's: weekday 0 and 7 are Sunday, 1 is Monday. The reference's crate counts Sunday as 1
and Saturday as 7, so that its `2-6` is Monday to Friday, which is `1-5` here; names mean the same in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qml_mp.errors import ConfigurationError

LAST = -1
"""As the number of a weekday within the month: the last one."""

_SHORT_FORMS = MappingProxyType({
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
})  # fmt: skip
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_MAX_CHARS = 500
_STEPPED = re.compile(r"(?:(\*)|(\w+)(?:-(\w+))?)(?:/(\d{1,4}))?", re.ASCII)
_NTH_WEEKDAY = re.compile(r"(\w+)#([1-5])", re.ASCII)
_LAST_WEEKDAY = re.compile(r"L([0-7])|([0-7]|[A-Z]{3})L", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field: which values it lets through."""

    text: str
    values: tuple[int, ...]
    """Ascending; Sunday is 0."""
    is_any: bool
    """Whether it lets every value through."""
    last_day: bool = False
    """Of a day of the month: the last one too."""
    nth: tuple[tuple[int, int], ...] = ()
    """Of a weekday: these too, as (weekday, its number within the month or `LAST`)."""

    @property
    def begins_with_star(self) -> bool:
        """What Unix cron goes by: `*` and `*/2` alike."""
        return self.text.startswith("*")

    @property
    def only(self) -> int | None:
        """The one value; None where there are several."""
        return self.values[0] if len(self.values) == 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CronFields:
    """All seven; without a field for them, second is 0 and year is any."""

    second: Field
    minute: Field
    hour: Field
    day: Field
    month: Field
    weekday: Field
    year: Field

    @property
    def joins_days_by_or(self) -> bool:
        """Whether a date fires by its day of the month OR by its weekday: when neither field begins with a
        star. Else both must let it through, as in Unix cron."""
        return not self.day.begins_with_star and not self.weekday.begins_with_star

    @property
    def is_any_day(self) -> bool:
        """Whether day of the month and weekday let every date through."""
        each = self.day.is_any, self.weekday.is_any
        return any(each) if self.joins_days_by_or else all(each)

    @property
    def keeps_interval(self) -> bool:
        """Whether it goes by elapsed time: when the hour begins with a star."""
        return self.hour.begins_with_star


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    low: int
    high: int
    names: Sequence[str] = ()
    """Of the values from `low` on."""


_SECOND, _MINUTE, _HOUR = _Kind("second", 0, 59), _Kind("minute", 0, 59), _Kind("hour", 0, 23)
_DAY, _MONTH = _Kind("day of the month", 1, 31), _Kind("month", 1, 12, _MONTHS)
_WEEKDAY, _YEAR = _Kind("weekday", 0, 6, _WEEKDAYS), _Kind("year", 1970, 2099)
_SUNDAY_TOO = 7

LAST_YEAR = _YEAR.high
"""No firing is looked for after it."""


def read_fields(text: str) -> CronFields:
    """Read an expression of 5 to 7 fields, or a short form such as `@daily`.

    Raises `ConfigurationError` that says which field cannot be read, and what it may be.
    """
    if not isinstance(text, str) or len(text) > _MAX_CHARS:
        raise ConfigurationError(
            f"The cron expression {str(text)[:50]!r} is not text of at most {_MAX_CHARS} characters."
        )
    parts = text.upper().split()
    if len(parts) == 1 and parts[0].startswith("@"):
        parts = _SHORT_FORMS.get(parts[0].lower(), "").split()
        if not parts:
            known = ", ".join(_SHORT_FORMS)
            raise ConfigurationError(f"The cron expression {text!r} cannot be read: there is only {known}.")
    if len(parts) not in (5, 6, 7):
        raise ConfigurationError(
            f"The cron expression {text!r} has {len(parts)} fields; it must have 5 (minute hour day month "
            "weekday), or 6 or 7 with seconds first and a year last."
        )
    if len(parts) == 5:
        parts.insert(0, "0")
    if len(parts) == 6:
        parts.append("*")
    try:
        second, minute, hour, day, month, weekday, year = parts
        return CronFields(
            second=_field(second, _SECOND),
            minute=_field(minute, _MINUTE),
            hour=_field(hour, _HOUR),
            day=_field("*" if day == "?" else day, _DAY),
            month=_field(month, _MONTH),
            weekday=_field("*" if weekday == "?" else weekday, _WEEKDAY),
            year=_field(year, _YEAR),
        )
    except ValueError as error:
        raise ConfigurationError(f"The cron expression {text!r} cannot be read: {error}") from None


def _field(text: str, kind: _Kind) -> Field:
    """Raises `ValueError`."""
    values: set[int] = set()
    nth: set[tuple[int, int]] = set()
    last_day = False
    for item in text.split(","):
        if kind is _DAY and item == "L":
            last_day = True
        elif kind is _WEEKDAY and (found := _NTH_WEEKDAY.fullmatch(item)):
            nth.add((_number(found[1], kind) % 7, int(found[2])))
        elif kind is _WEEKDAY and (found := _LAST_WEEKDAY.fullmatch(item)):
            nth.add((_number(found[1] or found[2], kind) % 7, LAST))
        else:
            values.update(_stepped(item, kind))
    if kind is _WEEKDAY:
        values = {value % 7 for value in values}
    return Field(
        text=text,
        values=tuple(sorted(values)),
        is_any=len(values) == kind.high - kind.low + 1,
        last_day=last_day,
        nth=tuple(sorted(nth)),
    )


def _stepped(item: str, kind: _Kind) -> Iterator[int]:
    """The values of `*`, `5`, `1-5`, `22-2` and each of them with a step; `5/15` goes on to the end."""
    found = _STEPPED.fullmatch(item)
    if found is None:
        raise _bad(item, kind)
    star, first, last, step = found.groups()
    if step is not None and int(step) == 0:
        raise ValueError(f"the step in {item!r} of the {kind.name} is 0.")
    if star:
        begin, end = kind.low, kind.high
    else:
        begin = _number(first, kind)
        end = _number(last, kind) if last else kind.high if step else begin
    if begin > end and kind is _YEAR:
        raise ValueError(f"the years {item!r} end before they begin.")
    if begin > end:  # round the end: Friday to Monday, ten in the evening to two
        end += kind.high - kind.low + 1
    for value in range(begin, end + 1, int(step or 1)):
        yield (value - kind.low) % (kind.high - kind.low + 1) + kind.low


def _number(text: str, kind: _Kind) -> int:
    if text in kind.names:
        return kind.names.index(text) + kind.low
    number = int(text) if text.isdecimal() else -1
    if not kind.low <= number <= kind.high and not (kind is _WEEKDAY and number == _SUNDAY_TOO):
        raise _bad(text, kind)
    return number


def _bad(text: str, kind: _Kind) -> ValueError:
    names = f" or {kind.names[0]} to {kind.names[-1]}" if kind.names else ""
    high = _SUNDAY_TOO if kind is _WEEKDAY else kind.high
    return ValueError(f"{text!r} is no {kind.name}, which is {kind.low} to {high}{names}.")
