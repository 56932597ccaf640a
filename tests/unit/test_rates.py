"""Tests: rates as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from qml_mp import ConfigurationError, QmlApp, Rate, WorkerRegistry
from qml_mp.processing.registry import FunctionWorker


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("50/s", "50/s"), ("10/30s", "10/30s"), ("100/60s", "100/m"), ("5/90m", "5/1h30m"),
        ("3/2.5s", "3/2.5s"),
        ("1000/26h3m", "1000/1563m"), ("1/1d1m1s", "1/86461s"), ("1/59.97s", "1/59970ms"),
        ("1/1234567us", "1/1234567us"), ("7/366d", "7/366d"),
    ],
)  # fmt: skip
def test_a_rate_is_written_as_what_is_read_as_the_same(text: str, shown: str) -> None:
    rate = Rate.parse(text)

    assert str(rate) == shown
    assert Rate.parse(shown) == rate


def test_a_rate_of_any_period_is_read_back() -> None:
    for us in (1, 999, 1_000, 1_001, 999_999, 59_950_000, 86_399_999_999, 366 * 86_400_000_000):
        rate = Rate(1, timedelta(microseconds=us))
        assert Rate.parse(str(rate)) == rate


@pytest.mark.parametrize("text", ["10/.5s", "10/m5s", "10/.s", "10/-1s", "10/ s5", "10/nan", "10/"])
def test_a_period_that_is_neither_a_unit_nor_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^rate is '"):
        Rate.parse(text)


@pytest.mark.parametrize("text", ["9" * 5000 + "/s", "1/" + "9" * 5000 + "s"])
def test_a_number_of_thousands_of_digits_is_refused_as_other_rates_are(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^rate is '"):
        Rate.parse(text)


@pytest.mark.parametrize("text", ["6/2s", "14/30s", "7/s", "97/7s", "10/s"])
def test_no_period_has_more_than_its_count_and_a_seventh_to_the_microsecond(text: str) -> None:
    rate, now, next_at = Rate.parse(text), datetime.now(UTC), None
    begun = []

    for _ in range(3 * rate.count):  # each as soon as it may
        now += rate.opens_in(next_at, now)
        next_at = rate.after_one(next_at, now)
        begun.append(now)

    most = rate.count + rate.count // 7
    assert min(later - first for first, later in zip(begun, begun[most:], strict=False)) >= rate.per


@pytest.mark.parametrize(
    "rate",
    [
        Rate(0, timedelta(seconds=1)),
        Rate(2**31, timedelta(hours=1)),
        Rate(True, timedelta(seconds=1)),
        Rate(5, timedelta(0)),
        Rate(5, timedelta(microseconds=1)),
        Rate(5, timedelta.max),
        Rate(5, 60),  # type: ignore[arg-type]  # what is tested
    ],
)
def test_a_rate_by_which_no_job_can_begin_is_refused_wherever_it_is_given(rate: Rate) -> None:
    app = QmlApp("memory://")
    worker = FunctionWorker(len, method_name="work", rate=rate)

    with pytest.raises(ConfigurationError, match=r"^rate is Rate\("):
        app.job(rate=rate)(lambda: None)
    with pytest.raises(ConfigurationError, match=r"^rate is Rate\("):
        app.limit_queue("images", rate=rate)
    with pytest.raises(ConfigurationError, match=r"'work': rate is Rate\("):
        WorkerRegistry().register(worker)


@pytest.mark.parametrize("back", [timedelta(microseconds=1), timedelta(seconds=1)])
def test_a_small_step_back_of_the_clock_lets_no_more_begin(back: timedelta) -> None:
    now, next_at, rate = datetime.now(UTC), None, Rate(10, timedelta(minutes=1))
    while rate.free(next_at, now):
        next_at = rate.after_one(next_at, now)

    assert rate.free(next_at, now - back) == 0
    assert rate.opens_in(next_at, now - back) == rate.interval + back
