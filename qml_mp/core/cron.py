"""Anywhere: cron expressions, in the one class that knows croniter.

Policy at changes of the clock: an expression names local wall times, and each of them fires once.
A wall time that the clock skips fires at the end of the gap; one that comes twice fires the first
time only. croniter sees naive local times alone, because its own handling of zones misfires there.

It is imported where a schedule is first read: most processes have none, and it costs each of them as much
as all of asyncio.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from qml_mp.errors import ConfigurationError

if TYPE_CHECKING:
    from croniter import croniter

_HORIZON_YEARS = 50


class CronSchedule:
    """A parsed cron expression in a zone.

    `text` has 5 fields (minute hour day month weekday), 6 (second first) or 7 (second first, year
    last); names (MON, JAN), ranges, lists and steps as cron has them. `tz` is an IANA name.
    Raises `ConfigurationError` that names what cannot be read.
    """

    def __init__(self, text: str, *, tz: str = "UTC") -> None:
        self.text = text
        self.tz = tz
        self._zone = _zone(tz)
        self._naive = _parse(text)

    def next_after(self, instant: datetime) -> datetime | None:
        """The first firing strictly after `instant` (aware); aware in UTC. None: there is none."""
        if instant.tzinfo is None:
            raise ConfigurationError("The instant of a cron look-up must be aware (have a zone).")
        local = instant.astimezone(self._zone).replace(tzinfo=None)
        while True:
            upcoming = self._next_local(local)
            if upcoming is None:
                return None
            fires_at = self._to_utc(upcoming)
            if fires_at > instant:
                return fires_at
            local = upcoming  # the second pass of a repeated hour: its wall times have fired

    def preview(self, instant: datetime, count: int) -> list[datetime]:
        """The next `count` firings after `instant`, fewer when the expression ends."""
        firings: list[datetime] = []
        upcoming = self.next_after(instant)
        while upcoming is not None and len(firings) < count:
            firings.append(upcoming)
            upcoming = self.next_after(upcoming)
        return firings

    def _next_local(self, local: datetime) -> datetime | None:
        from croniter.croniter import CroniterError

        try:
            self._naive.set_current(local, force=True)
            found: datetime = self._naive.get_next(datetime)
        except (CroniterError, OverflowError):
            return None  # croniter's way of saying that no date within its horizon matches
        return found

    def _to_utc(self, local: datetime) -> datetime:
        first = local.replace(tzinfo=self._zone).astimezone(UTC)
        if first.astimezone(self._zone).replace(tzinfo=None) == local:
            return first
        return self._end_of_gap(local, first)

    def _end_of_gap(self, local: datetime, after: datetime) -> datetime:
        before = local.replace(tzinfo=self._zone, fold=1).astimezone(UTC)
        offset_before = before.astimezone(self._zone).utcoffset()
        while after - before > timedelta(seconds=1):
            middle = before + (after - before) / 2
            if middle.astimezone(self._zone).utcoffset() == offset_before:
                before = middle
            else:
                after = middle
        return after.replace(microsecond=0)


def _parse(text: str) -> croniter:
    from croniter.croniter import CroniterError, croniter

    if not isinstance(text, str) or len(text.split()) not in (5, 6, 7):
        raise ConfigurationError(
            f"The cron expression {text!r} has {len(str(text).split())} fields; it must have 5 "
            "(minute hour day month weekday), or 6 or 7 with seconds first and a year last."
        )
    try:
        return croniter(
            text,
            datetime(2000, 1, 1),  # noqa: DTZ001 - naive on purpose, see the module's docstring
            ret_type=datetime,
            second_at_beginning=True,
            max_years_between_matches=_HORIZON_YEARS,
        )
    except (CroniterError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())  # it may repeat the text, with the line breaks that are in it
        raise ConfigurationError(f"The cron expression {text!r} cannot be read: {reason}") from None


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise ConfigurationError(
            f"The zone {name!r} is not known here; use an IANA name such as Europe/Berlin "
            "(on a system without zone data: pip install tzdata)."
        ) from None
