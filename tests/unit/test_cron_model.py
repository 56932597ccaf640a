"""Tests: when cron expressions fire, against the documented rules as the simplest program says them: it looks
at every minute. The zones change their clocks by half an hour, one, two and a day, at night and at midnight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qml_mp.core.cron import CronSchedule

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
CHANGES = {
    "Europe/Berlin": (datetime(2015, 3, 29, 1, tzinfo=UTC), datetime(2015, 10, 25, 1, tzinfo=UTC)),
    "America/New_York": (datetime(2016, 3, 13, 7, tzinfo=UTC), datetime(2016, 11, 6, 6, tzinfo=UTC)),
    "Australia/Lord_Howe": (datetime(2017, 10, 1, tzinfo=UTC), datetime(2017, 4, 1, 15, tzinfo=UTC)),
    "America/Sao_Paulo": (datetime(2018, 11, 4, 3, tzinfo=UTC), datetime(2018, 2, 18, 2, tzinfo=UTC)),
    "Antarctica/Troll": (datetime(2015, 3, 29, 1, tzinfo=UTC), datetime(2015, 10, 25, 1, tzinfo=UTC)),
    "America/Caracas": (datetime(2016, 5, 1, 7, tzinfo=UTC),),
    "Pacific/Apia": (datetime(2011, 12, 30, 10, tzinfo=UTC),),
}
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")


@dataclass(frozen=True)
class Part:
    """A field as text, and what it means."""

    text: str
    holds: Callable[[int], bool]

    @property
    def has_star(self) -> bool:
        return self.text.startswith("*")


ANY = Part("*", lambda _: True)


def numbers(low: int, high: int) -> st.SearchStrategy[Part]:
    """Lists of values, ranges and steps."""
    values = st.integers(low, high)
    ranges = st.tuples(values, values).map(sorted)
    return st.one_of(
        st.just(ANY),
        st.lists(values, min_size=1, max_size=3).map(
            lambda chosen: Part(",".join(map(str, chosen)), lambda value: value in chosen)
        ),
        ranges.map(lambda pair: Part(f"{pair[0]}-{pair[1]}", lambda value: pair[0] <= value <= pair[1])),
        st.integers(2, high).map(lambda step: Part(f"*/{step}", lambda value: (value - low) % step == 0)),
        st.tuples(values, st.integers(2, high)).map(
            lambda pair: Part(
                f"{pair[0]}/{pair[1]}", lambda value: value >= pair[0] and (value - pair[0]) % pair[1] == 0
            )
        ),
    )


@dataclass(frozen=True)
class DatePart:
    text: str
    holds: Callable[[date], bool]


EVERY_DAY = DatePart("*", lambda _: True)


def days() -> st.SearchStrategy[DatePart]:
    plain = numbers(1, 31).map(lambda part: DatePart(part.text, lambda day: part.holds(day.day)))
    return plain | st.just(DatePart("L", lambda day: (day + DAY).day == 1))


def weekdays() -> st.SearchStrategy[DatePart]:
    """Sunday is 0 and 7."""

    def number(day: date) -> int:
        return day.isoweekday() % 7

    chosen = st.integers(0, 6)
    return st.one_of(
        st.just(EVERY_DAY),
        st.lists(chosen, min_size=1, max_size=3).map(
            lambda wanted: DatePart(
                ",".join(WEEKDAYS[each] for each in wanted), lambda day: number(day) in wanted
            )
        ),
        st.tuples(chosen, chosen).map(  # also round the end of the week
            lambda pair: DatePart(
                f"{WEEKDAYS[pair[0]]}-{WEEKDAYS[pair[1]]}",
                lambda day: (number(day) - pair[0]) % 7 <= (pair[1] - pair[0]) % 7,
            )
        ),
        st.tuples(chosen, st.integers(1, 5)).map(
            lambda pair: DatePart(
                f"{pair[0]}#{pair[1]}", lambda day: number(day) == pair[0] and (day.day + 6) // 7 == pair[1]
            )
        ),
        chosen.map(
            lambda wanted: DatePart(
                f"{wanted}L", lambda day: number(day) == wanted and (day + 7 * DAY).month != day.month
            )
        ),
        st.just(DatePart("7", lambda day: number(day) == 0)),
    )


@dataclass(frozen=True)
class Expression:
    minute: Part
    hour: Part
    day: DatePart
    month: Part
    weekday: DatePart

    @property
    def text(self) -> str:
        fields = (self.minute, self.hour, self.day, self.month, self.weekday)
        return " ".join(each.text for each in fields)

    def names(self, wall: datetime) -> bool:
        """Day of the month or weekday; both where one of them begins with a star."""
        by_day, by_weekday = self.day.holds(wall.date()), self.weekday.holds(wall.date())
        is_either = not (self.day.text.startswith("*") or self.weekday.text.startswith("*"))
        on_date = by_day or by_weekday if is_either else by_day and by_weekday
        return (
            self.minute.holds(wall.minute)
            and self.hour.holds(wall.hour)
            and self.month.holds(wall.month)
            and on_date
        )

    def firings(self, zone: str, begin: datetime, end: datetime) -> list[datetime]:
        """Those between, in order."""
        fires, shown = [], set[datetime]()
        minutes = walls(zone, begin, end)
        for (_, before), (instant, wall) in pairwise(minutes):
            skipped = [before + each * MINUTE for each in range(1, (wall - before) // MINUTE)]
            if self.hour.has_star:  # an interval: by elapsed time
                is_due = self.names(wall)
            else:  # each wall time once: the first time, or at the end of the gap
                is_due = (wall not in shown and self.names(wall)) or any(map(self.names, skipped))
            shown |= {wall, *skipped}
            if is_due:
                fires.append(instant)
        return fires


@cache
def walls(zone: str, begin: datetime, end: datetime) -> list[tuple[datetime, datetime]]:
    """Each minute, and what a clock there shows."""
    info, count = ZoneInfo(zone), (end - begin) // MINUTE
    instants = [begin + each * MINUTE for each in range(count)]
    return [(instant, instant.astimezone(info).replace(tzinfo=None)) for instant in instants]


EXPRESSIONS = st.builds(
    Expression,
    minute=numbers(0, 59),
    hour=numbers(0, 23)
    | st.sampled_from(["0", "1", "2", "3"]).map(lambda hour: Part(hour, lambda value: value == int(hour))),
    day=st.just(EVERY_DAY) | days(),
    month=st.just(ANY) | numbers(1, 12),
    weekday=st.just(EVERY_DAY) | weekdays(),
)


@pytest.mark.fault(50)
@pytest.mark.parametrize("zone", CHANGES)
@settings(max_examples=25)
@given(
    expression=EXPRESSIONS,
    which=st.integers(0, 1),
    away=st.integers(-150, 150) | st.integers(-36 * 60, 36 * 60),
)
def test_an_expression_fires_when_looking_at_every_minute_says(
    zone: str, expression: Expression, which: int, away: int
) -> None:
    change = CHANGES[zone][which % len(CHANGES[zone])]
    begin, end, at = change - 3 * DAY, change + 4 * DAY, change + away * MINUTE

    expected = [firing for firing in expression.firings(zone, begin, end) if firing > at][:20]

    schedule = CronSchedule(expression.text, tz=zone)
    assert [each for each in schedule.preview(at, 20) if each < end] == expected, expression.text


@settings(max_examples=25)
@given(expression=EXPRESSIONS, day=st.dates(date(2011, 1, 1), date(2030, 12, 31)))
@example(
    Expression(ANY, ANY, DatePart("29", lambda day: day.day == 29), ANY, EVERY_DAY),
    date(2028, 2, 27),
)
def test_in_utc_it_fires_when_looking_at_every_minute_says(expression: Expression, day: date) -> None:
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    end = begin + 3 * DAY

    expected = expression.firings("UTC", begin - MINUTE, end)[:30]

    found = CronSchedule(expression.text).preview(begin - MINUTE, 30)
    assert [each for each in found if each < end] == expected, expression.text


def of_times(minute: str, hour: str, minutes: set[int], hours: set[int]) -> Expression:
    return Expression(
        Part(minute, minutes.__contains__), Part(hour, hours.__contains__), EVERY_DAY, ANY, EVERY_DAY
    )


@pytest.mark.fault(50)
@pytest.mark.parametrize("zone", CHANGES)
@pytest.mark.parametrize(
    "expression",
    [
        of_times("30", "2", {30}, {2}),
        of_times("0", "0", {0}, {0}),
        of_times("15,45", "0-3", {15, 45}, {0, 1, 2, 3}),
        of_times("*/20", "2", {0, 20, 40}, {2}),
        of_times("*/20", "*", {0, 20, 40}, set(range(24))),
        of_times("0", "*/3", {0}, set(range(0, 24, 3))),
    ],
    ids=lambda expression: str(expression.text),
)
def test_around_a_change_of_the_clock_it_fires_when_looking_at_every_minute_says(
    zone: str, expression: Expression
) -> None:
    schedule = CronSchedule(expression.text, tz=zone)
    for change in CHANGES[zone]:
        begin, end = change - 3 * DAY, change + 4 * DAY
        firings = expression.firings(zone, begin, end)
        for minutes in (-1560, -180, -90, -60, -30, 0, 5, 15, 35, 60, 75, 105):
            at = change + minutes * MINUTE

            expected = [firing for firing in firings if firing > at]

            assert schedule.preview(at, 3) == expected[:3], at
