"""Tests: charts, quantiles and firings as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.core.cron import CronSchedule
from qml_mp.core.history import (
    BOUNDS_US,
    Tally,
    numbers_of_one,
    tally_of,
)
from qml_mp.views.firings import next_firings


def tally(count: int, *, ran_us: int = 1_000_000) -> Tally:
    return tally_of([count * number for number in numbers_of_one(waited_us=0, ran_us=ran_us)])


@pytest.mark.parametrize("ran_us", [1, 999, 1000, 1001, 1_500_000, BOUNDS_US[-1]])
def test_a_quantile_is_within_the_bucket_of_what_was_counted(ran_us: int) -> None:
    ran = tally(7, ran_us=ran_us).ran
    number = ran.counts.index(7)
    low = BOUNDS_US[number - 1] if number else 0
    high = BOUNDS_US[number]

    found = [ran.quantile(part) for part in (0.01, 0.5, 0.95, 1.0)]

    assert all(one is not None and low <= one / timedelta(microseconds=1) <= high for one in found)


SET_FORWARD = datetime(2030, 3, 30, 12, tzinfo=UTC)
"""The day before: Berlin goes from 02:00 to 03:00 on 31 March 2030, at 01:00 UTC."""
SET_BACK = datetime(2030, 10, 26, 12, tzinfo=UTC)
"""The day before: it goes from 03:00 to 02:00 on 27 October 2030, at 01:00 UTC."""
FORWARD, BACK = "the clock was set forward by 1h", "the clock was set back by 1h"
SKIPPED = "the wall time that is meant is skipped; it fires at the change"
FIRST = "this wall time comes twice; it is the first"
SECOND = "this wall time comes twice; it is the second"


@pytest.mark.parametrize(
    ("cron", "tz", "now", "told"),
    [
        (
            "0 9 * * *",
            "Europe/Berlin",
            SET_FORWARD,
            [("2030-03-31 09:00:00 CEST", "07:00", (FORWARD,)), ("2030-04-01 09:00:00 CEST", "07:00", ())],
        ),
        (
            "30 2 * * *",
            "Europe/Berlin",
            SET_FORWARD,
            [
                ("2030-03-31 03:00:00 CEST", "01:00", (SKIPPED, FORWARD)),
                ("2030-04-01 02:30:00 CEST", "00:30", ()),
            ],
        ),
        (
            "30 2 * * *",
            "Europe/Berlin",
            SET_BACK,
            [
                ("2030-10-27 02:30:00 CEST", "00:30", (FIRST,)),
                ("2030-10-28 02:30:00 CET", "01:30", (BACK,)),
            ],
        ),
        (
            "30 * * * *",
            "Europe/Berlin",
            datetime(2030, 10, 27, 0, tzinfo=UTC),
            [
                ("2030-10-27 02:30:00 CEST", "00:30", (FIRST,)),
                ("2030-10-27 02:30:00 CET", "01:30", (SECOND, BACK)),
            ],
        ),
        (
            "0 9 * * *",
            "UTC",
            SET_BACK,
            [("2030-10-27 09:00:00 UTC", "09:00", ()), ("2030-10-28 09:00:00 UTC", "09:00", ())],
        ),
    ],
)
def test_firings_have_the_wall_time_of_their_zone_utc_and_what_the_clock_does(
    cron: str, tz: str, now: datetime, told: list[tuple[str, str, tuple[str, ...]]]
) -> None:
    firings = next_firings(CronSchedule(cron, tz=tz), now=now, count=2)

    assert [(each.local, each.utc[11:16], each.marks) for each in firings] == told
