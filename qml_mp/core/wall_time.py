"""Anywhere: wall times of a zone, and the instants at which they are shown: one, two where the clock is set
back, none where it is set forward.

A wall time is a naive `datetime`, an instant an aware one in UTC; both have whole seconds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

SECOND = timedelta(seconds=1)


def wall_at(instant: datetime, zone: ZoneInfo) -> datetime:
    """What clocks show then."""
    return instant.astimezone(zone).replace(tzinfo=None, fold=0)


def instants_of(wall: datetime, zone: ZoneInfo) -> list[datetime]:
    """When clocks show it, in order; empty where they skip it."""
    either = (_instant(wall, zone, fold) for fold in (0, 1))
    return sorted({instant for instant in either if wall_at(instant, zone) == wall})


def end_of_gap(wall: datetime, zone: ZoneInfo) -> datetime:
    """The change that skips this wall time."""
    return _change_between(_instant(wall, zone, 1), _instant(wall, zone, 0), zone)


def change_before_second_pass(instant: datetime, zone: ZoneInfo) -> datetime | None:
    """Where clocks show what they have shown before: the change that set them back; else None."""
    local = instant.astimezone(zone)
    if not local.fold:
        return None
    return _change_between(_instant(local.replace(tzinfo=None), zone, 0), instant, zone)


def change_after_first_pass(instant: datetime, zone: ZoneInfo) -> datetime | None:
    """Where clocks show what they will show again: the change that will set them back; else None."""
    local = instant.astimezone(zone)
    again = _instant(local.replace(tzinfo=None), zone, 1)
    if local.fold or again <= instant:
        return None
    return _change_between(instant, again, zone)


def _instant(wall: datetime, zone: ZoneInfo, fold: int) -> datetime:
    return wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)


def _change_between(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The first instant after `before` whose offset is another. It differs at `after`."""
    offset = before.astimezone(zone).utcoffset()
    while after - before > SECOND:
        middle = before + (after - before) // SECOND // 2 * SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            before = middle
        else:
            after = middle
    return after
