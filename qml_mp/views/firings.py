"""Client and web process: firings of a schedule as people read them: the wall time of its zone, UTC, and what
the clock does.

A change of the clock moves, repeats or skips wall times. Each firing that this touches says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from qml_mp.core.cron import CronSchedule
from qml_mp.core.wall_time import SECOND, instants_of, wall_at
from qml_mp.units import format_duration

_NO_CHANGE = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """One of them."""

    at: datetime
    """In UTC."""
    local: str
    """ "2030-03-31 09:00:00 CEST", in the zone of the schedule."""
    marks: tuple[str, ...] = ()
    """What the clock does there, in words; () for most."""

    @property
    def utc(self) -> str:
        """The same instant."""
        return self.at.strftime("%Y-%m-%d %H:%M:%S UTC")


def next_firings(schedule: CronSchedule, *, now: datetime, count: int) -> Sequence[Firing]:
    """The next ones after `now`; fewer when the expression ends."""
    found, before = list[Firing](), now
    for at in schedule.preview(now, count):
        found.append(firing_at(schedule, at, before=before))
        before = at
    return found


def firing_at(schedule: CronSchedule, at: datetime, *, before: datetime) -> Firing:
    """The one at this instant. `before`: the one before it, or now."""
    zone = ZoneInfo(schedule.tz)
    local = at.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S %Z")
    return Firing(at=at, local=local, marks=tuple(_marks(schedule, zone, before=before, at=at)))


def _marks(schedule: CronSchedule, zone: ZoneInfo, *, before: datetime, at: datetime) -> Iterator[str]:
    wall = wall_at(at, zone)
    shown = instants_of(wall, zone)
    if len(shown) == 2:
        which = "first" if at == shown[0] else "second"
        yield f"this wall time comes twice; it is the {which}"
    if _offset(at, zone) > _offset(at - SECOND, zone) and not schedule.names(wall):
        yield "the wall time that is meant is skipped; it fires at the change"
    change = _offset(at, zone) - _offset(before, zone)
    if change != _NO_CHANGE:
        direction = "forward" if change > _NO_CHANGE else "back"
        yield f"the clock was set {direction} by {format_duration(abs(change))}"


def _offset(at: datetime, zone: ZoneInfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or _NO_CHANGE
