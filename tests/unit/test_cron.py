"""Tests: cron expressions: fields, changes of the clock, bad input, the newest firings, and words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qml_mp.core.cron import CronSchedule
from qml_mp.core.recurring import RecurringJob
from qml_mp.errors import ConfigurationError, InvalidJob

ZONES = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Antarctica/Troll",
    "UTC",
    "Pacific/Apia",
]


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
        ("0 0 0 1 1 * 2099", utc(2026, 3, 1), utc(2099, 1, 1)),
        ("0 0 0 1 1 * 2026,2099", utc(2026, 3, 1), utc(2099, 1, 1)),
        ("@hourly", utc(2025, 3, 1, 8, 1), utc(2025, 3, 1, 9)),
        ("@daily", utc(2025, 3, 1, 8), utc(2025, 3, 2)),
        ("@midnight", utc(2025, 3, 1, 8), utc(2025, 3, 2)),
        ("@weekly", utc(2025, 3, 1), utc(2025, 3, 2)),
        ("@monthly", utc(2025, 3, 1), utc(2025, 4, 1)),
        ("@yearly", utc(2025, 3, 1), utc(2026, 1, 1)),
        ("@annually", utc(2025, 3, 1), utc(2026, 1, 1)),
        ("0 0 * * 0", utc(2025, 3, 1), utc(2025, 3, 2)),
        ("0 0 * * 7", utc(2025, 3, 1), utc(2025, 3, 2)),
        ("0 0 * * 1", utc(2025, 3, 1), utc(2025, 3, 3)),
        ("0 0 * * FRI-MON", utc(2025, 3, 3), utc(2025, 3, 7)),
        ("0 22-2 * * *", utc(2025, 3, 1, 2), utc(2025, 3, 1, 22)),
        ("5-5 9 * * *", utc(2025, 3, 1, 9), utc(2025, 3, 1, 9, 5)),
        ("59/15 9 * * *", utc(2025, 3, 1, 9), utc(2025, 3, 1, 9, 59)),
        ("0 0 L * *", utc(2028, 2, 1), utc(2028, 2, 29)),
        ("0 0 1,L * *", utc(2025, 4, 2), utc(2025, 4, 30)),
        ("0 0 2-31,L * *", utc(2025, 4, 30), utc(2025, 5, 2)),
        ("0 0 L,1-29,31 * *", utc(2025, 5, 29), utc(2025, 5, 31)),
        ("0 0 L,2-31 * */1", utc(2025, 2, 28), utc(2025, 3, 2)),
        ("0 0 31,L 2 *", utc(2025, 2, 1), utc(2025, 2, 28)),
        ("0 0 31 * *", utc(2025, 3, 31), utc(2025, 5, 31)),
        ("0 0 * * MON#2", utc(2025, 3, 1), utc(2025, 3, 10)),
        ("0 0 * * 1#5", utc(2025, 4, 1), utc(2025, 6, 30)),
        ("0 0 * * 5L", utc(2025, 3, 1), utc(2025, 3, 28)),
        ("0 0 * * L5", utc(2025, 3, 1), utc(2025, 3, 28)),
        ("0 0 * * fril", utc(2025, 3, 1), utc(2025, 3, 28)),
        ("0 0 * * WED,MON#2", utc(2025, 3, 6), utc(2025, 3, 10)),
        ("0 0 ? * ?", utc(2025, 3, 1), utc(2025, 3, 2)),
        # Day of the month or weekday; both where one of them begins with a star.
        ("0 0 15 * MON", utc(2025, 3, 1), utc(2025, 3, 3)),
        ("0 0 15 * MON", utc(2025, 3, 12), utc(2025, 3, 15)),
        ("0 0 15 * MON#2", utc(2025, 3, 11), utc(2025, 3, 15)),
        ("0 0 31 2 MON", utc(2025, 3, 1), utc(2026, 2, 2)),
        ("0 0 */2 * MON", utc(2025, 3, 4), utc(2025, 3, 17)),
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
@pytest.mark.parametrize("text", ["*/15 * * * *", "0 * * * *", "@hourly", "20 7/30 * * * *"])
def test_an_interval_is_kept_through_a_repeated_hour_and_through_a_skipped_one(text: str) -> None:
    schedule = CronSchedule(text, tz="Europe/Berlin")

    for change in (utc(2025, 3, 30, 1), utc(2025, 10, 26, 1)):
        firings = schedule.preview(change - timedelta(hours=3), 40)
        assert len({after - before for before, after in pairwise(firings)}) == 1


@pytest.mark.fault(50)
@pytest.mark.parametrize(
    ("text", "firings"),
    [
        ("0 */2 * * *", [utc(2025, 10, 26, 0), utc(2025, 10, 26, 1), utc(2025, 10, 26, 3)]),
        ("0 0-22/2 * * *", [utc(2025, 10, 26, 0), utc(2025, 10, 26, 3), utc(2025, 10, 26, 5)]),
        ("*/30 2 * * *", [utc(2025, 10, 26, 0), utc(2025, 10, 26, 0, 30), utc(2025, 10, 27, 1)]),
    ],
)
def test_what_makes_an_interval_is_the_star_of_the_hour(text: str, firings: list[datetime]) -> None:
    assert CronSchedule(text, tz="Europe/Berlin").preview(utc(2025, 10, 25, 23), 3) == firings


@pytest.mark.fault(50)
def test_an_interval_of_some_days_is_kept_in_zones_that_change_by_half_an_hour_or_at_midnight() -> None:
    lord_howe = CronSchedule("0 * * * SUN", tz="Australia/Lord_Howe").preview(utc(2025, 4, 5, 14, 30), 3)
    sao_paulo = CronSchedule("30 * 4 11 *", tz="America/Sao_Paulo").preview(utc(2018, 11, 4, 2), 2)

    assert lord_howe == [utc(2025, 4, 5, 15, 30), utc(2025, 4, 5, 16, 30), utc(2025, 4, 5, 17, 30)]
    assert sao_paulo == [utc(2018, 11, 4, 3, 30), utc(2018, 11, 4, 4, 30)]


@pytest.mark.fault(50)
def test_a_day_that_a_zone_skips_fires_at_the_change() -> None:
    firings = CronSchedule("0 9 * * *", tz="Pacific/Apia").preview(utc(2011, 12, 29, 12), 3)

    assert firings == [utc(2011, 12, 29, 19), utc(2011, 12, 30, 10), utc(2011, 12, 30, 19)]


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
        "@reboot",
        "@every 5m",
        "5,,6 * * * *",
        "5/ * * * *",
        "-5 * * * *",
        "0 0 0 * *",
        "0 0 * 0 *",
        "0 0 * * 8",
        "0 0 * * MON#6",
        "0 0 * * MON#0",
        "0 0 15W * *",
        "0 0 L-3 * *",
        "0 0 * * L",
        "R * * * *",
        "H * * * *",
        "? * * * *",
        "\u0665 * * * *",
        "0 0 0 1 1 * 2100",
        "0 0 0 1 1 * 1969",
        "0," * 300 + "0 0 * * *",
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


def test_a_field_that_cannot_be_read_is_named_with_what_it_may_be() -> None:
    with pytest.raises(ConfigurationError, match="'25' is no hour, which is 0 to 23"):
        CronSchedule("0 25 * * *")
    with pytest.raises(ConfigurationError, match="is no weekday, which is 0 to 7 or SUN to SAT"):
        CronSchedule("0 0 * * MOON")
    with pytest.raises(ConfigurationError, match="the years '2030-2026' end before they begin"):
        CronSchedule("0 0 9 1 1 * 2030-2026")
    with pytest.raises(ConfigurationError, match="'2100' is no year, which is 1970 to 2099"):
        CronSchedule("0 0 0 1 1 * 2100")


def test_a_template_that_can_never_fire_is_refused_with_the_horizon() -> None:
    with pytest.raises(ConfigurationError, match="never fires again up to the end of 2099"):
        RecurringJob.new("x", "0 0 30 2 *", "digest", now=utc(2025, 3, 1))


def test_a_template_with_a_bad_payload_method_or_id_is_refused() -> None:
    with pytest.raises(InvalidJob):
        RecurringJob.new("x", "0 9 * * *", "digest", float("nan"))
    for method in ("", "x" * 201):
        with pytest.raises(InvalidJob, match="1 to 200 characters"):
            RecurringJob.new("x", "0 9 * * *", method)
    with pytest.raises(ConfigurationError, match="recurring id"):
        RecurringJob.new("", "0 9 * * *", "digest")


def every_firing(schedule: CronSchedule, first: datetime, until: datetime) -> list[datetime]:
    """By walking from each to the next."""
    firings = [first - timedelta(seconds=1)]
    while (upcoming := schedule.next_after(firings[-1])) is not None and upcoming <= until:
        firings.append(upcoming)
    return firings[1:]


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
    ("text", "words"),
    [
        ("* * * * *", "every minute"),
        ("*/15 * * * *", "every 15 minutes"),
        ("0,30 * * * *", "every 30 minutes"),
        ("*/7 * * * *", "at minutes 0, 7, … 56 of every hour"),
        ("0 * * * *", "at minute 0 of every hour"),
        ("7,9 * * * *", "at minutes 7 and 9 of every hour"),
        ("0 */2 * * *", "at minute 0 in the hours 0, 2, … 22"),
        ("* 2 * * *", "every minute in the hour 2 every day"),
        ("*/15 9-17 * * 1-5", "every 15 minutes in the hours 9 to 17 on Monday to Friday"),
        ("30 2 * * *", "at 02:30 every day"),
        ("0 0,12 * * *", "at 00:00 and 12:00 every day"),
        ("30 59 23 31 12 *", "at 23:59:30 on day 31 of the month in December"),
        ("* * * * * *", "every second"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("5 * * * * *", "at second 5 of every minute"),
        ("5 */20 2 * * *", "at second 5 every 20 minutes in the hour 2 every day"),
        ("0 0 0 1 1 * 2099", "at 00:00 on day 1 of the month in January in 2099"),
        ("0 0 0 1 1 * 2027-2030", "at 00:00 on day 1 of the month in January in 2027 to 2030"),
        ("0 9 * * MON-FRI", "at 09:00 on Monday to Friday"),
        ("0 9 * * 2-6", "at 09:00 on Tuesday to Saturday"),
        ("0 9 * * 0", "at 09:00 on Sunday"),
        ("0 9 * * FRI-MON", "at 09:00 on Monday and Friday to Sunday"),
        ("0 9 1 * MON", "at 09:00 on day 1 of the month or on Monday"),
        ("0 9 */2 * MON", "at 09:00 on days 1, 3, … 31 of the month, only if on Monday"),
        ("0 9 1-31 * MON", "at 09:00 every day"),
        ("0 0 L * *", "at 00:00 on the last day of the month"),
        ("0 0 1,15,L * *", "at 00:00 on days 1 and 15 and on the last day of the month"),
        ("0 0 * * 5L", "at 00:00 on the last Friday of the month"),
        ("0 0 * * MON#2,3", "at 00:00 on Wednesday and on the 2nd Monday of the month"),
        ("0 0 * JAN-MAR,6 *", "at 00:00 in January to March and June"),
        ("@hourly", "at minute 0 of every hour"),
        ("@weekly", "at 00:00 on Sunday"),
        ("@monthly", "at 00:00 on day 1 of the month"),
        ("@yearly", "at 00:00 on day 1 of the month in January"),
    ],
)
def test_an_expression_in_words(text: str, words: str) -> None:
    assert CronSchedule(text, tz="Europe/Berlin").words == f"{words} (Europe/Berlin)"
