"""Tests: random cron expressions and instants, asked of this project and of an independent library (cronsim,
which follows Debian's cron). `python -m tests.cron_pairs 100000` asks so many.

Half of the instants lie within a day and a half of a change of the clock, over a decade of ten zones whose
changes have little in common: of half an hour, one, two and a day, at night, at midnight and for Ramadan.
"""

from __future__ import annotations

import random
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from qml_mp.core.cron import CronSchedule

ZONES = (
    "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca",
    "Europe/Istanbul", "Asia/Pyongyang", "America/Caracas", "Antarctica/Troll", "Pacific/Apia",
)  # fmt: skip
_WITH_CHANGES_OF_HALF_AN_HOUR = ("Australia/Lord_Howe", "Asia/Pyongyang", "America/Caracas")
BEGIN, END = datetime(2011, 1, 1, tzinfo=UTC), datetime(2021, 1, 1, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
_WEEKDAYS, _MONTHS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"), ("JAN", "APR", "OCT", "DEC")

Pair = tuple[str, str, datetime]
"""Expression, zone, instant."""


def random_pairs(rng: random.Random) -> Iterator[Pair]:
    """Without end."""
    while True:
        zone = rng.choice(ZONES)
        changes = [change for change in changes_of(zone) if change < END]
        if rng.random() < 0.5:
            at = rng.choice(changes) + timedelta(seconds=rng.randint(-129_600, 129_600))
        else:
            at = BEGIN + timedelta(seconds=rng.randrange(int((END - BEGIN).total_seconds())))
        yield _expression(rng), zone, at


def answer(text: str, zone: str, at: datetime) -> datetime | None:
    """This project's."""
    return CronSchedule(text, tz=zone).next_after(at)


def independent_answer(text: str, zone: str, at: datetime) -> datetime | None:
    """cronsim's. In the second pass of a repeated hour it begins with times of the first, which are over."""
    try:
        for found in CronSim(text, at.astimezone(ZoneInfo(zone))):
            if found.astimezone(UTC) > at:
                return found.astimezone(UTC)
    except (CronSimError, StopIteration):
        pass
    return None


def known_difference(
    text: str, zone: str, at: datetime, ours: datetime | None, theirs: datetime | None
) -> str | None:
    """Why the answers may differ when a change of the clock is near; each is a test in `test_cron_agrees`."""
    last = max([at, *filter(None, (ours, theirs))])
    if not any(at - 27 * HOUR <= change <= last for change in changes_of(zone)):
        return None
    *seconds, minute, hour, _, _, _ = text.split()
    if hour.startswith("*"):
        if theirs in changes_of(zone):
            return "cronsim stops at a midnight that is skipped, whatever the hour after it is"
        half = zone in _WITH_CHANGES_OF_HALF_AN_HOUR
        return (
            "cronsim jumps over a change of half an hour and lands beside what it looks for" if half else None
        )
    if seconds:
        return "with seconds, cronsim goes by elapsed time whatever the hour is"
    return "cronsim takes a star in the minute for an interval" if minute.startswith("*") else None


@cache
def changes_of(zone: str) -> list[datetime]:
    """The changes of the zone's clock, to the minute, also in the years after the decade."""
    info, found, before = ZoneInfo(zone), [], BEGIN
    while before < END + (END - BEGIN):
        after = before + 12 * HOUR
        old = _offset(before, info)
        if _offset(after, info) != old:
            minutes = range(1, 12 * 60 + 1)
            first = partial(_differs, before, old, info)
            found.append(before + minutes[bisect_left(minutes, True, key=first)] * MINUTE)
        before = after
    return found


def _differs(before: datetime, offset: timedelta | None, info: ZoneInfo, minutes: int) -> bool:
    return _offset(before + minutes * MINUTE, info) != offset


def _offset(at: datetime, info: ZoneInfo) -> timedelta | None:
    return at.astimezone(info).utcoffset()


def _expression(rng: random.Random) -> str:
    day = _field(rng, 1, 31, any_p=0.6, special=["L"])
    weekday = _field(rng, 0, 7, any_p=0.6, names=_WEEKDAYS, stepped_values=False, special=_nth(rng))
    fields = [
        _field(rng, 0, 59, any_p=0.15),
        _field(rng, 0, 23, any_p=0.35),
        day,
        _field(rng, 1, 12, any_p=0.8, names=_MONTHS),
        weekday,
    ]
    return " ".join([_field(rng, 0, 59, any_p=0.1), *fields] if rng.random() < 0.2 else fields)


def _nth(rng: random.Random) -> list[str]:
    return [f"{rng.randint(0, 7)}#{rng.randint(1, 5)}", f"{rng.randint(0, 7)}L"]


def _field(
    rng: random.Random,
    low: int,
    high: int,
    *,
    any_p: float,
    names: tuple[str, ...] = (),
    stepped_values: bool = True,
    special: list[str] | None = None,
) -> str:
    if rng.random() < any_p:
        return "*"
    items = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        first, last = sorted((rng.randint(low, high), rng.randint(low, high)))
        step = rng.randint(1, high)
        kinds = [str(first), str(first), f"{first}-{last}", f"*/{step}"]
        kinds += [f"{first}-{last}/{step}"] if first < last else []  # of 5-5/2 cronsim makes 5/2
        kinds += [f"{first}/{step}"] if stepped_values else []
        kinds += [rng.choice(names)] if names else []
        kinds += special or []
        items.append(rng.choice(kinds))
    return ",".join(items)


def main(count: int, seed: int = 1) -> int:
    """Ask for so many pairs; how many answers differ for no known reason."""
    kinds: Counter[str] = Counter()
    for text, zone, at in islice(random_pairs(random.Random(seed)), count):
        ours, theirs = answer(text, zone, at), independent_answer(text, zone, at)
        if ours == theirs:
            kinds["agrees"] += 1
            continue
        kind = known_difference(text, zone, at, ours, theirs)
        kinds[kind or "UNKNOWN"] += 1
        if kind is None and kinds["UNKNOWN"] <= 20:
            print(f"{text!r} in {zone} after {at}: {ours}, cronsim: {theirs}")
    for kind, found in kinds.most_common():
        print(f"{found:7} {kind}")
    return kinds["UNKNOWN"]


if __name__ == "__main__":
    sys.exit(1 if main(int(sys.argv[1]), *map(int, sys.argv[2:])) else 0)
