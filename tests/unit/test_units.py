"""Tests: durations and sizes as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.errors import ConfigurationError
from qml_mp.units import Duration, Size, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (timedelta(minutes=5), 300),
        (0, 0),
        (2.5, 2.5),
        ("90", 90),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        (" 1d 2h ", 93600),
        ("1.5s", 1.5),
        ("2W", 1209600),
    ],
)
def test_a_duration_is_read_as_it_is_written(written: Duration, seconds: float) -> None:
    assert parse_duration(written).total_seconds() == seconds


@pytest.mark.parametrize(
    "written",
    [-1, "-5m", "", "m", "5 parsecs", "5m!", float("nan"), float("inf"), "nan", 1e300, True, None, "1e400"],
)
def test_what_is_no_duration_is_refused_by_name(written: Duration) -> None:
    with pytest.raises(ConfigurationError, match=r"^shutdown_timeout is "):
        parse_duration(written, what="shutdown_timeout")


@pytest.mark.parametrize("written", [timedelta(days=36_526), "3650000d", 1e10, 1e300, 10**50, "1e400"])
def test_a_duration_of_more_than_a_hundred_years_is_refused_with_the_bound(written: Duration) -> None:
    with pytest.raises(ConfigurationError, match=r"^ttl is .*; it must be at most 36525d \(a hundred"):
        parse_duration(written, what="ttl")


def test_a_number_of_seconds_that_cannot_even_be_shown_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^ttl is a value of type int that cannot be shown"):
        parse_duration(10**5000, what="ttl")


@given(st.integers(min_value=0, max_value=86_400_000))
def test_whole_seconds_survive_as_text(seconds: int) -> None:
    assert parse_duration(f"{seconds}s") == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("duration", "printed"),
    [
        (timedelta(0), "0s"),
        (timedelta(milliseconds=40), "40ms"),
        (timedelta(seconds=2.5), "2.5s"),
        (timedelta(seconds=90), "1m30s"),
        (timedelta(hours=1, minutes=30), "1h30m"),
        (timedelta(days=1, hours=2, seconds=3), "1d2h"),
        (timedelta(seconds=59.999), "1m"),
        (timedelta(seconds=0.9999), "1s"),
        (-timedelta(seconds=5), "-5s"),
    ],
)
def test_a_duration_is_printed_in_its_largest_units(duration: timedelta, printed: str) -> None:
    assert format_duration(duration) == printed


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [
        (0, 0),
        (1024, 1024),
        ("512MiB", 512 * 1024**2),
        ("512M", 512 * 1024**2),
        ("1.5g", 3 * 2**29),
        ("2KB", 2000),
        ("7 b", 7),
    ],
)
def test_a_size_is_read_as_it_is_written(written: Size, size_bytes: int) -> None:
    assert parse_size(written) == size_bytes


@pytest.mark.parametrize(
    "written", [-1, "-1", "", "MiB", "5 apples", True, None, "1e5", "9" * 400, 2**63, "8589934592g"]
)
def test_what_is_no_size_is_refused_by_name(written: Size) -> None:
    with pytest.raises(ConfigurationError, match=r"^max_memory is "):
        parse_size(written, what="max_memory")


@pytest.mark.parametrize(
    ("size_bytes", "printed"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1023 * 1024, "1023.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (512 * 1024**2, "512.0 MiB"),
        (2**41, "2048.0 GiB"),
    ],
)
def test_a_size_is_printed_in_binary_units(size_bytes: int, printed: str) -> None:
    assert format_size(size_bytes) == printed
