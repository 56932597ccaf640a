"""Tests: when cron expressions fire, by this project and by an independent library, and where they differ."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from cronsim import CronSim, CronSimError

from qml_mp.core.cron import CronSchedule
from tests.cron_pairs import ZONES, answer, changes_of, independent_answer, known_difference, random_pairs


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.fault(50)
def test_random_expressions_fire_when_the_other_library_says() -> None:
    """`python -m tests.cron_pairs 100000` asks more of them."""
    for text, zone, at in islice(random_pairs(random.Random(10)), 2000):
        ours, theirs = answer(text, zone, at), independent_answer(text, zone, at)
        assert ours == theirs or known_difference(text, zone, at, ours, theirs), (text, zone, at)


@pytest.mark.fault(50)
@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("text", ["30 2 * * *", "0 0 * * *", "15,45 1-3 * * *", "*/20 * * * *", "0 * * * *"])
def test_they_agree_at_each_change_of_a_decade(text: str, zone: str) -> None:
    for change in changes_of(zone):
        for hours in (-26, -3, -1.5, -1, -0.5, 0, 0.25, 1, 1.75):
            at = change + timedelta(hours=hours)
            ours, theirs = answer(text, zone, at), independent_answer(text, zone, at)
            assert ours == theirs or known_difference(text, zone, at, ours, theirs), at


@pytest.mark.fault(50)
def test_difference_a_star_in_the_minute_alone_is_no_interval() -> None:
    """In Debian's cron it is one: nothing at all runs on the day without two o'clock."""
    skips, repeats = utc(2015, 3, 29, 0), utc(2015, 10, 25, 0, 45)

    assert answer("*/30 2 * * *", "Europe/Berlin", skips) == utc(2015, 3, 29, 1)
    assert independent_answer("*/30 2 * * *", "Europe/Berlin", skips) == utc(2015, 3, 30, 0)
    assert answer("*/30 2 * * *", "Europe/Berlin", repeats) == utc(2015, 10, 26, 1)
    assert independent_answer("*/30 2 * * *", "Europe/Berlin", repeats) == utc(2015, 10, 25, 1)


@pytest.mark.fault(50)
def test_difference_with_seconds_the_rules_are_the_same() -> None:
    """cronsim takes all expressions with seconds for intervals, as Debian's cron has none."""
    repeats = utc(2015, 10, 25, 0, 45)

    assert answer("0 30 2 * * *", "Europe/Berlin", repeats) == utc(2015, 10, 26, 1, 30)
    assert independent_answer("0 30 2 * * *", "Europe/Berlin", repeats) == utc(2015, 10, 25, 1, 30)


@pytest.mark.fault(50)
def test_difference_hours_begin_at_their_beginning_behind_a_change_of_half_an_hour() -> None:
    """cronsim steps by whole hours and minutes, and lands at half past."""
    at = utc(2016, 5, 1, 5, 14, 27)

    assert answer("0 * * * *", "America/Caracas", utc(2016, 5, 1, 6, 30)) == utc(2016, 5, 1, 7)
    assert independent_answer("0 * * * *", "America/Caracas", utc(2016, 5, 1, 6, 30)) == utc(2016, 5, 1, 8)
    assert answer("1,39 */23 * * *", "America/Caracas", at) == utc(2016, 5, 2, 3, 1)
    assert independent_answer("1,39 */23 * * *", "America/Caracas", at) == utc(2016, 5, 2, 3, 39)


@pytest.mark.fault(50)
def test_difference_a_midnight_that_is_skipped_is_none() -> None:
    """cronsim stops there, which is one o'clock (in Apia the next day), and asks no further."""
    at = utc(2011, 4, 2, 23, 30)

    assert answer("0 */3 3 * *", "Africa/Casablanca", at) == utc(2011, 4, 3, 2)
    assert independent_answer("0 */3 3 * *", "Africa/Casablanca", at) == utc(2011, 4, 3)
    assert answer("0 * 30,31 12 *", "Pacific/Apia", utc(2011, 12, 29, 12)) == utc(2011, 12, 30, 10)


def test_difference_the_other_library_begins_a_second_pass_with_times_that_are_over() -> None:
    local = utc(2015, 10, 25, 1, 15).astimezone(CronSchedule("* * * * *", tz="Europe/Berlin")._zone)

    assert next(CronSim("30 2 * * *", local)).astimezone(UTC) == utc(2015, 10, 25, 0, 30)
    assert answer("30 2 * * *", "Europe/Berlin", local) == utc(2015, 10, 26, 1, 30)


@pytest.mark.parametrize("text", ["0 0 * * FRI-MON", "0 22-2 * * *", "0 0 * * L5", "0 0 * * FRIL", "@daily"])
def test_difference_what_the_other_library_does_not_read(text: str) -> None:
    assert CronSchedule(text).next_after(utc(2025, 3, 1)) is not None
    with pytest.raises(CronSimError):
        CronSim(text, utc(2025, 3, 1))


def test_difference_a_stepped_weekday_ends_with_saturday() -> None:
    """`5/2` goes on to Sunday as 7 there."""
    friday = utc(2025, 3, 7)

    assert answer("0 0 * * 5/2", "UTC", friday) == utc(2025, 3, 14)
    assert independent_answer("0 0 * * 5/2", "UTC", friday) == utc(2025, 3, 9)
    assert independent_answer("0 0 * * 5-5/2", "UTC", friday) == utc(
        2025, 3, 9
    )  # a range of one, here and there
