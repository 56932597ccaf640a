"""Tests: cron expressions: fields, changes of the clock, and bad input."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qml_mp.core.cron import CronSchedule
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, InvalidJob


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("text", "after", "firing"),
    [
        ("0 9 * * *", utc(2025, 3, 1, 8, 59, 59), utc(2025, 3, 1, 9)),
        ("0 9 * * *", utc(2025, 3, 1, 9), utc(2025, 3, 2, 9)),
        ("0 9 * * MON-FRI", utc(2025, 2, 28, 9), utc(2025, 3, 3, 9)),
        ("*/15 * * * *", utc(2025, 3, 1, 8, 1), utc(2025, 3, 1, 8, 15)),
        ("0 0 1 JAN *", utc(2025, 3, 1), utc(2026, 1, 1)),
        ("0 0 29 2 *", utc(2025, 3, 1), utc(2028, 2, 29)),
        ("0 0 9 * * *", utc(2025, 3, 1, 8), utc(2025, 3, 1, 9)),
        ("*/10 * * * * *", utc(2025, 3, 1, 8, 0, 1), utc(2025, 3, 1, 8, 0, 10)),
        ("30 59 23 31 12 *", utc(2025, 3, 1), utc(2025, 12, 31, 23, 59, 30)),
        ("0 0 9 * * * 2027", utc(2025, 3, 1), utc(2027, 1, 1, 9)),
    ],
)
def test_an_expression_of_5_6_or_7_fields_fires_when_it_says(
    text: str, after: datetime, firing: datetime
) -> None:
    assert CronSchedule(text).next_after(after) == firing


def test_a_fraction_of_a_second_does_not_hide_the_next_firing() -> None:
    schedule = CronSchedule("* * * * * *")

    assert schedule.next_after(utc(2025, 3, 1, 8, 0, 0, 999_999)) == utc(2025, 3, 1, 8, 0, 1)
    assert schedule.next_after(utc(2025, 3, 1, 8, 0, 0, 1)) == utc(2025, 3, 1, 8, 0, 1)


def test_years_that_are_over_never_fire() -> None:
    assert CronSchedule("0 0 9 * * * 2020").next_after(utc(2025, 3, 1)) is None


@pytest.mark.fault(50)
@pytest.mark.parametrize("tz", ["Europe/Warsaw", "Europe/Berlin"])
def test_a_wall_time_that_the_clock_skips_fires_at_the_end_of_the_gap(tz: str) -> None:
    schedule = CronSchedule("30 2 * * *", tz=tz)

    firings = schedule.preview(utc(2025, 3, 29, 0), 3)

    assert firings == [utc(2025, 3, 29, 1, 30), utc(2025, 3, 30, 1, 0), utc(2025, 3, 31, 0, 30)]


@pytest.mark.fault(50)
@pytest.mark.parametrize("tz", ["Europe/Warsaw", "Europe/Berlin"])
def test_a_wall_time_that_comes_twice_fires_the_first_time_only(tz: str) -> None:
    schedule = CronSchedule("30 2 * * *", tz=tz)

    firings = schedule.preview(utc(2025, 10, 25, 12), 2)

    assert firings == [utc(2025, 10, 26, 0, 30), utc(2025, 10, 27, 1, 30)]
    assert schedule.next_after(utc(2025, 10, 26, 0, 45)) == utc(2025, 10, 27, 1, 30)


@pytest.mark.fault(50)
def test_a_job_of_every_minute_fires_once_at_the_end_of_the_gap() -> None:
    firings = CronSchedule("* * * * *", tz="Europe/Berlin").preview(utc(2025, 3, 30, 0, 58), 3)

    assert firings == [utc(2025, 3, 30, 0, 59), utc(2025, 3, 30, 1, 0), utc(2025, 3, 30, 1, 1)]


@pytest.mark.fault(50)
def test_after_the_first_pass_of_a_repeated_hour_the_next_new_wall_time_fires() -> None:
    firings = CronSchedule("0 * * * *", tz="Europe/Berlin").preview(utc(2025, 10, 25, 23, 30), 3)

    assert firings == [utc(2025, 10, 26, 0), utc(2025, 10, 26, 2), utc(2025, 10, 26, 3)]


@pytest.mark.fault(50)
@settings(max_examples=60, deadline=None)
@given(
    tz=st.sampled_from(
        ["Europe/Berlin", "Europe/Warsaw", "America/New_York", "Australia/Lord_Howe", "UTC", "Pacific/Apia"]
    ),
    text=st.sampled_from(
        [
            "*/20 * * * *",
            "30 2 * * *",
            "0 * * * *",
            "15 1,2,3 * * SUN",
            "*/30 59 1-3 * * *",
            "0 0 * * *",
            "5 3 26 10 *",
        ]
    ),
    start=st.datetimes(datetime(2011, 12, 25), datetime(2026, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_firings_strictly_increase_and_no_wall_time_fires_twice(tz: str, text: str, start: datetime) -> None:
    firings = CronSchedule(text, tz=tz).preview(start, 40)

    walls = [firing.astimezone(ZoneInfo(tz)).replace(tzinfo=None) for firing in firings]
    assert firings[0] > start
    assert all(earlier < later for earlier, later in pairwise(firings))
    assert len(set(walls)) == len(walls)


@settings(max_examples=60, deadline=None)
@given(
    start=st.datetimes(datetime(2025, 10, 20), datetime(2025, 10, 30), timezones=st.just(UTC)),  # noqa: DTZ001
    step=st.integers(1, 7200),
)
def test_asking_in_between_never_changes_the_next_firing(start: datetime, step: int) -> None:
    schedule = CronSchedule("*/45 * * * *", tz="Europe/Berlin")
    firing = schedule.next_after(start)
    assert firing is not None

    between = min(start + timedelta(seconds=step), firing - timedelta(microseconds=1))

    assert schedule.next_after(max(between, start)) == firing


@pytest.mark.parametrize(
    "text",
    [
        "",
        "* * * *",
        "* * * * * * * *",
        "61 * * * *",
        "60 0 9 * * *",
        "a b c d e",
        "* * * * FOO",
        "@daily",
        "*/0 * * * *",
        "0 0 31-1 * *x",
    ],
)
def test_an_expression_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="cron expression"):
        CronSchedule(text)


@pytest.mark.parametrize("tz", ["", "Mars/Olympus", "../etc/passwd", "/etc/passwd", "a\0b", "Europe"])
def test_a_zone_that_is_not_known_is_refused(tz: str) -> None:
    with pytest.raises(ConfigurationError, match="zone"):
        CronSchedule("0 9 * * *", tz=tz)


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="aware"):
        CronSchedule("0 9 * * *").next_after(datetime(2025, 3, 1))  # noqa: DTZ001 - naive is what is refused


def test_a_template_knows_its_first_firing() -> None:
    template = RecurringJob.new(
        "morning", "0 9 * * *", "digest", {"a": 1}, tz="Europe/Berlin", now=utc(2025, 3, 1, 12)
    )

    assert template.next_run_at == utc(2025, 3, 2, 8)
    assert template.to_json()["next_run_at"] == "2025-03-02T08:00:00+00:00"


def test_a_template_that_can_never_fire_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="never fires"):
        RecurringJob.new("x", "0 0 30 2 *", "digest", now=utc(2025, 3, 1))


def test_a_template_with_a_bad_payload_or_id_is_refused() -> None:
    with pytest.raises(InvalidJob):
        RecurringJob.new("x", "0 9 * * *", "digest", float("nan"))
    with pytest.raises(ConfigurationError, match="recurring id"):
        RecurringJob.new("", "0 9 * * *", "digest")
