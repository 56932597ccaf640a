"""Anywhere: what a cron expression means, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from qml_mp.core.cron_fields import LAST, CronFields, Field

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
_MOST_CLOCK_TIMES = 6
_SERIES = 5  # so many values with one step between them are written as 1, 3, … 31


def in_words(fields: CronFields) -> str:
    """As people say it: "at 09:00 on Monday to Friday", "every 15 minutes"."""
    parts = [_times(fields), _dates(fields)]
    if not fields.month.is_any:
        parts.append(f"in {_listed(fields.month.values, lambda month: _MONTHS[month - 1])}")
    if not fields.year.is_any:
        parts.append(f"in {_listed(fields.year.values)}")
    return " ".join(filter(None, parts))


def _times(fields: CronFields) -> str:
    second, minute = fields.second.only, fields.minute.only
    if second is not None and minute is not None and len(fields.hour.values) <= _MOST_CLOCK_TIMES:
        seconds = f":{second:02}" if second else ""
        return f"at {_joined([f'{hour:02}:{minute:02}{seconds}' for hour in fields.hour.values])}"
    phrases = list(_within_the_hour(fields))
    if not fields.hour.is_any:
        word = "hour" if fields.hour.only is not None else "hours"
        phrases.append(f"in the {word} {_listed(fields.hour.values)}")
    elif phrases[-1].startswith("at minute"):
        phrases.append("of every hour")
    return " ".join(phrases)


def _within_the_hour(fields: CronFields) -> Iterator[str]:
    """Of seconds and minutes what says anything: the second 0 does not, nor every minute behind a second."""
    if fields.second.only != 0:
        yield _counted(fields.second, "second")
        if fields.minute.is_any:
            if not fields.second.is_any and _interval(fields.second) is None:
                yield "of every minute"
            return
    yield _counted(fields.minute, "minute")


def _counted(field: Field, unit: str) -> str:
    if field.is_any:
        return f"every {unit}"
    interval = _interval(field)
    if interval is not None:
        return f"every {interval} {unit}s"
    return f"at {unit}{'s' * (field.only is None)} {_listed(field.values)}"


def _interval(field: Field) -> int | None:
    """The step of values that are evenly spread over sixty, beginning with 0."""
    step = field.values[1] if len(field.values) > 1 else 0
    return step if step and field.values == tuple(range(0, 60, step)) and 60 % step == 0 else None


def _dates(fields: CronFields) -> str:
    of_month = "" if fields.day.is_any else _days(fields.day)
    of_week = "" if fields.weekday.is_any else _weekdays(fields.weekday)
    if fields.is_any_day:
        of_month = of_week = ""
    if of_month and of_week:
        return f"{of_month} or {of_week}" if fields.joins_days_by_or else f"{of_month}, only if {of_week}"
    is_daily = len(fields.hour.values) <= _MOST_CLOCK_TIMES and fields.month.is_any and fields.year.is_any
    return of_month or of_week or ("every day" if is_daily else "")


def _days(field: Field) -> str:
    phrases = []
    if field.values:
        phrases.append(f"on day{'s' * (field.only is None)} {_listed(field.values)}")
    if field.last_day:
        phrases.append("on the last day")
    return f"{_joined(phrases)} of the month"


def _weekdays(field: Field) -> str:
    phrases = []
    if field.values:
        from_monday = sorted(field.values, key=lambda day: (day - 1) % 7)
        phrases.append(f"on {_listed([day or 7 for day in from_monday], lambda day: _WEEKDAYS[day % 7])}")
    phrases += [f"on the {_nth(n)} {_WEEKDAYS[weekday]} of the month" for weekday, n in field.nth]
    return _joined(phrases)


def _nth(n: int) -> str:
    return "last" if n == LAST else ("1st", "2nd", "3rd", "4th", "5th")[n - 1]


def _listed(values: Sequence[int], name: object = str) -> str:
    """ "1, 3, … 31", "1 to 5 and 9"; the values ascend."""
    assert callable(name)
    steps = {after - before for before, after in pairwise(values)}
    if len(values) >= _SERIES and len(steps) == 1 and steps != {1}:
        return f"{name(values[0])}, {name(values[1])}, … {name(values[-1])}"
    words: list[str] = []
    for first, last in _runs(values):
        if last - first >= 2:
            words.append(f"{name(first)} to {name(last)}")
        else:
            words += [name(value) for value in range(first, last + 1)]
    return _joined(words)


def _runs(values: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = last = values[0]
    for value in values[1:]:
        if value != last + 1:
            yield first, last
            first = value
        last = value
    yield first, last


def _joined(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
