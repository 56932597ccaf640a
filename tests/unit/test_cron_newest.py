"""Tests: the newest firings of a stretch: exactly those, in few steps however many lie in it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qml_mp.core.cron import CronSchedule

ZONES = ("Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Casablanca", "Pacific/Apia")


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


def every_firing(schedule: CronSchedule, first: datetime, until: datetime) -> list[datetime]:
    """By walking from each to the next."""
    firings = [first - timedelta(seconds=1)]
    while (upcoming := schedule.next_after(firings[-1])) is not None and upcoming <= until:
        firings.append(upcoming)
    return firings[1:]


@pytest.mark.parametrize("text", ["*/20 * * * *", "30 2 * * *", "0 0 1 1 *", "*/5 * 1 1 * *"])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_the_newest_firings_are_the_last_of_all(text: str, count: int) -> None:
    schedule = CronSchedule(text, tz="Europe/Berlin")
    first, until = utc(2024, 12, 30, 7), utc(2025, 1, 1, 3, 20)

    expected = every_firing(schedule, first, until)[-count:]

    assert schedule.newest(count, first=first, until=until) == expected


@pytest.mark.fault(50)
@settings(max_examples=100, deadline=None)
@given(
    tz=st.sampled_from(ZONES),
    text=st.sampled_from(
        ["30 2 * * *", "15 1,2,3 * * SUN", "*/30 59 1-3 * * *", "5 3 26 10 *", "*/45 * * * *",
         "0,30 1-2 * * *", "0,1,3,9 */40 0-3 * * SUN", "* 7 2 * * SUN", "0 0,2 * 28-31 3,10 *"]
    ),
    until=st.datetimes(datetime(2011, 12, 25), datetime(2026, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
    days=st.integers(0, 40),
    count=st.integers(1, 70),
)  # fmt: skip
def test_the_newest_firings_are_the_last_of_all_around_changes_of_the_clock(
    tz: str, text: str, until: datetime, days: int, count: int
) -> None:
    schedule = CronSchedule(text, tz=tz)
    first = schedule.next_after(until - timedelta(days=days))
    assert first is not None

    expected = every_firing(schedule, first, until)[-count:]

    assert schedule.newest(count, first=first, until=until) == expected


class CountingSchedule(CronSchedule):
    steps = 0

    def next_after(self, instant: datetime) -> datetime | None:
        self.steps += 1
        return super().next_after(instant)


@pytest.mark.parametrize(
    ("text", "first", "until", "newest"),
    [
        ("* * 9-17 * * MON-FRI", utc(2026, 11, 16, 9), utc(2026, 11, 23, 8), utc(2026, 11, 20, 17, 59, 59)),
        ("* * * 1-7 * *", utc(2026, 11, 1), utc(2026, 11, 28, 12), utc(2026, 11, 7, 23, 59, 59)),
        ("* * * 1 1 *", utc(2026, 1, 1), utc(2026, 11, 28), utc(2026, 1, 1, 23, 59, 59)),
        ("* 0-29 9 * * FRI", utc(2026, 11, 20, 9), utc(2026, 11, 23, 8, 0, 7), utc(2026, 11, 20, 9, 29, 59)),
        ("* * * * * * 2020", utc(2020, 1, 1), utc(2026, 11, 28), utc(2020, 12, 31, 23, 59, 59)),
    ],
)
@pytest.mark.parametrize("count", [1, 100])
def test_the_newest_of_very_many_firings_that_lie_far_back_are_found_in_few_steps(
    text: str, first: datetime, until: datetime, newest: datetime, count: int
) -> None:
    schedule = CountingSchedule(text)

    found = schedule.newest(count, first=first, until=until)

    assert found == [newest - timedelta(seconds=back) for back in reversed(range(count))]
    assert schedule.steps < 2 * count + 2 * 2 * 28  # 2**28 seconds are more than eight years


@pytest.mark.parametrize(
    "text", ["* * * * *", "0 9 * * *", "0 9,13,17 * * MON-FRI", "0,1,3,7,15,31 */7 9-17 * * *"]
)
def test_the_newest_of_many_firings_take_hardly_more_steps_than_they_are(text: str) -> None:
    schedule = CountingSchedule(text)

    found = schedule.newest(500, first=utc(2020, 1, 1), until=utc(2026, 11, 28))

    assert len(found) == 500
    assert schedule.steps < 2 * 500
