"""Anywhere: cron expressions in a zone: when they fire.

Policy at changes of the clock. An expression names local wall times, and each of them that exists fires once:
one that the clock skips fires at the change, one that comes twice fires the first time. But an expression
whose hour begins with a star (`0 * * * *`, `*/15 * * * *`) is meant as an interval and goes by elapsed time:
it fires in both passes of a repeated hour, and nothing is made up for what a change skips.
That is the rule of Vixie cron and cronie, save that there a star in the minute is enough: `*/10 2 * * *`
would not run at all on the day that has no two o'clock.

croniter finds the next wall time and nothing else, because it takes `5-5` for all minutes, joins `#` and the
day of the month by AND, and misfires in zones. It is imported where a schedule is first read: most processes
have none, and it costs each of them as much as all of asyncio.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from qml_mp.core.cron_fields import LAST, LAST_YEAR, CronFields, Field, read_fields
from qml_mp.core.cron_words import in_words
from qml_mp.core.wall_time import (
    SECOND,
    change_after_first_pass,
    change_before_second_pass,
    end_of_gap,
    instants_of,
    wall_at,
)
from qml_mp.errors import ConfigurationError

if TYPE_CHECKING:
    from croniter import croniter

_LONGEST_WAIT_YEARS = 130  # between two firings: from the first year of a year field to its last

_FEW = 32  # firings that are walked over, rather than looked for by halves


class UnknownZone(ConfigurationError):
    """This machine does not know the zone; another may."""


class CronSchedule:
    """A parsed cron expression in a zone.

    `text` has 5 fields (minute hour day month weekday), 6 (second first) or 7 (second first, year last):
    values, names (MON, JAN), ranges (also round the end: FRI-MON), lists, steps, `L` (the last day of the
    month), `5L` or `FRIL` (its last Friday), `MON#2` (its second Monday). Or it is `@hourly`, `@daily`,
    `@midnight`, `@weekly`, `@monthly`, `@yearly` or `@annually`. As in Unix cron, weekday 0 and 7 are Sunday,
    and when neither day of the month nor weekday begins with a star, a date fires by either of them. (The
    reference's crate counts Sunday as 1, Saturday as 7, and wants both.) `tz` is an IANA name.
    Raises `ConfigurationError` that names what cannot be read.
    """

    def __init__(self, text: str, *, tz: str = "UTC") -> None:
        self.text = text
        self.tz = tz
        self._zone = read_zone(tz)
        self._fields = read_fields(text)
        self._searches: list[croniter] | None = None
        """Made when the first is asked for: what it says in words needs none."""

    @property
    def words(self) -> str:
        """What it means, for people: "at 09:00 on Monday to Friday (Europe/Berlin)"."""
        return f"{in_words(self._fields)} ({self.tz})"

    @property
    def fires_each_hour(self) -> bool:
        """Whether it fires at least once in each hour of each day."""
        fields = self._fields
        return fields.is_any_day and fields.hour.is_any and fields.month.is_any and fields.year.is_any

    def next_after(self, instant: datetime) -> datetime | None:
        """The first firing strictly after `instant` (aware); aware in UTC. None: there is none up to 2099."""
        if instant.tzinfo is None:
            raise ConfigurationError("The instant of a cron look-up must be aware (have a zone).")
        instant = instant.replace(microsecond=0)  # firings have whole seconds
        if self._fields.keeps_interval:
            return self._next_by_interval(instant)
        wall = wall_at(instant, self._zone)
        change = change_before_second_pass(instant, self._zone)
        if change is not None:  # what is shown again has fired: go on with what the first pass led to
            wall = wall_at(change - SECOND, self._zone)
        upcoming = self._next_wall(wall)
        if upcoming is None:
            return None
        return next(iter(instants_of(upcoming, self._zone)), None) or end_of_gap(upcoming, self._zone)

    def preview(self, instant: datetime, count: int) -> list[datetime]:
        """The next `count` firings after `instant`, fewer when the expression ends."""
        return [firing for _, firing in zip(range(count), self._after(instant), strict=False)]

    def newest(self, count: int, *, first: datetime, until: datetime) -> list[datetime]:
        """Of the firings from `first` to `until`, both included, the newest `count`, in order."""
        begin = first - SECOND
        found: deque[datetime] = deque()
        before, away = until.replace(microsecond=0) + SECOND, SECOND
        while len(found) < count:
            last, away = self._last_between(begin, before, away=away)
            if not last:
                break
            found.extendleft(reversed(last))
            before = last[0]
        return list(found)[-count:]

    def names(self, wall: datetime) -> bool:
        """Whether the expression names this wall time (naive, whole seconds), whatever the clock does."""
        return self._next_wall(wall - SECOND) == wall

    def _after(self, instant: datetime) -> Iterator[datetime]:
        upcoming = self.next_after(instant)
        while upcoming is not None:
            yield upcoming
            upcoming = self.next_after(upcoming)

    def _last_between(
        self, begin: datetime, before: datetime, *, away: timedelta
    ) -> tuple[list[datetime], timedelta]:
        """The last firings between these instants, in order, one or a few as it happens; they are looked for
        first where they are so far `away` from the later one. With it how far away to look for those before.

        Not by walking from firing to firing, unless they are few: a template that rests over the weekend has
        tens of thousands behind it on Monday, and a transaction waits for the answer.
        """
        while True:  # ever farther back, until a firing lies between
            after = before - min(away + SECOND, before - begin)
            firing = self.next_after(after)
            if firing is not None and firing < before:
                break
            if after == begin:
                return [], away
            away *= 2
        found = [firing]
        while len(found) < _FEW:
            following = self.next_after(found[-1])
            if following is None or following >= before:
                # As far again, in which lie as many or, of one or two, twice as many: still few, as a rule.
                return found, (before - found[0]) * (2 if len(found) <= 2 else 1)
            found.append(following)
        firing = after = found[-1]
        none_after = before - SECOND
        while firing < none_after:  # seldom is there another one
            following = self.next_after(after)
            if following is None or following >= before:
                none_after = after
            else:
                firing = following
            after = firing + (none_after - firing) // SECOND // 2 * SECOND
        return [firing], found[-1] - found[0]  # in which lie few, however long the pause behind it was

    def _next_by_interval(self, instant: datetime) -> datetime | None:
        upcoming = self._next_wall(wall_at(instant, self._zone))
        change = change_after_first_pass(instant, self._zone)
        if change is not None:
            first_pass = () if upcoming is None else instants_of(upcoming, self._zone)
            if first_pass and first_pass[0] < change:
                return first_pass[0]
            instant = change - SECOND
            upcoming = self._next_wall(wall_at(change, self._zone) - SECOND)
        while upcoming is not None:
            shown = instants_of(upcoming, self._zone)
            for shown_at in shown:
                if shown_at > instant:
                    return shown_at
            # Skipped: go on behind the gap.
            behind = upcoming if shown else wall_at(end_of_gap(upcoming, self._zone), self._zone) - SECOND
            upcoming = self._next_wall(behind)
        return None

    def _next_wall(self, wall: datetime) -> datetime | None:
        if self._searches is None:
            self._searches = [_search(expression) for expression in _expressions(self._fields)]
        found = (_next_match(search, wall) for search in self._searches)
        return min((each for each in found if each is not None), default=None)


def _next_match(search: croniter, wall: datetime) -> datetime | None:
    from croniter.croniter import CroniterError

    try:
        search.set_current(wall, force=True)
        found: datetime = search.get_next(datetime)
    except (CroniterError, OverflowError):
        return None  # croniter's way of saying that no date matches
    return found if found.year <= LAST_YEAR else None


def _search(expression: str) -> croniter:
    from croniter.croniter import croniter

    return croniter(
        expression,
        datetime(2000, 1, 1),  # noqa: DTZ001 - it sees wall times alone
        ret_type=datetime,
        day_or=False,
        second_at_beginning=True,
        max_years_between_matches=_LONGEST_WAIT_YEARS,
    )


def _expressions(fields: CronFields) -> Iterator[str]:
    """What croniter is given: lists of numbers, one expression for each thing that a date may fire by."""
    days, weekdays = list(_days(fields.day)), list(_weekdays(fields.weekday))
    dates = [(day, weekday) for day in days for weekday in weekdays]
    if fields.joins_days_by_or:
        dates = [*((day, "*") for day in days), *(("*", weekday) for weekday in weekdays)]
    times = " ".join(map(_listed, (fields.second, fields.minute, fields.hour)))
    for of_month, of_week in dates:
        yield f"{times} {of_month} {_listed(fields.month)} {of_week} {_listed(fields.year)}"


def _listed(field: Field) -> str:
    return "*" if field.is_any else ",".join(_numbers(field))


def _numbers(field: Field) -> Iterator[str]:
    return map(str, field.values)


def _days(field: Field) -> Iterator[str]:
    """croniter takes the last day and 30 others for every day."""
    if field.values:
        yield _listed(field)
    if field.last_day:
        yield "L"


def _weekdays(field: Field) -> Iterator[str]:
    """croniter takes no list of both kinds."""
    if field.values:
        yield _listed(field)
    if field.nth:
        yield ",".join(f"L{weekday}" if n == LAST else f"{weekday}#{n}" for weekday, n in field.nth)


def read_zone(name: str) -> ZoneInfo:
    """The zone of that name. Raises `UnknownZone` for one that this machine does not know, and
    `ConfigurationError` for what can be none."""
    try:
        return ZoneInfo(name)
    except (ValueError, TypeError):
        problem: type[ConfigurationError] = ConfigurationError
    except (ZoneInfoNotFoundError, OSError):
        problem = UnknownZone
    raise problem(
        f"The zone {name!r} is not known here; use an IANA name such as Europe/Berlin "
        "(on a system without zone data: pip install tzdata)."
    )


def zone_trouble(name: str) -> str:
    """What to say of a zone that this machine does not know: a typing error, or the data of an older year."""
    from difflib import get_close_matches  # nobody else needs it

    near = get_close_matches(name, available_timezones(), n=1)
    meant = f" Did you mean {near[0]}?" if near else ""
    return f"the zone {name!r} is not known here, so that it fires only on machines that know it.{meant}"


def is_known_zone(name: str) -> bool:
    """Whether this machine knows the zone, by now."""
    try:
        read_zone(name)
    except ConfigurationError:
        return False
    return True
