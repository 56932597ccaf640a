"""Tests: retry policies, with a seeded random source."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qml_mp.errors import ConfigurationError, JobTimeout
from qml_mp.processing.retry import RetryPolicy, RetryStrategy


class Busy(ConnectionError):
    """An exception of the user's."""


def delays_s(
    policy: RetryPolicy, count: int, *, max_retries: int | None = None, seed: int = 1
) -> list[float | None]:
    rng = random.Random(seed)
    found = [
        policy.decide(failures=n, error="ValueError", max_retries=max_retries, rng=rng)
        for n in range(1, count + 1)
    ]
    return [None if delay is None else delay.total_seconds() for delay in found]


def test_the_default_is_the_references() -> None:
    policy = RetryPolicy()

    assert policy == RetryPolicy.exponential()
    assert (policy.strategy, policy.max_attempts, policy.multiplier) == (RetryStrategy.EXPONENTIAL, 5, 2.0)
    assert (policy.delay, policy.max_delay, policy.jitter) == (
        timedelta(seconds=1),
        timedelta(minutes=15),
        0.25,
    )


def test_exponential_delays_double_until_attempts_are_spent() -> None:
    assert delays_s(RetryPolicy.exponential(jitter=0), 6) == [1, 2, 4, 8, None, None]


def test_exponential_delays_stop_growing_at_the_cap() -> None:
    policy = RetryPolicy.exponential(60, multiplier=10, max_delay="15m", max_attempts=2000, jitter=0)

    delays = delays_s(policy, 1500)

    assert delays[:4] == [60, 600, 900, 900]
    assert delays[-1] == 900


def test_fixed_delays_are_all_the_same() -> None:
    assert delays_s(RetryPolicy.fixed("20s", max_attempts=4, jitter=0), 4) == [20, 20, 20, None]


def test_a_fixed_delay_may_be_longer_than_the_cap_of_the_others() -> None:
    assert delays_s(RetryPolicy.fixed("1d", jitter=0), 1) == [86400]


def test_a_first_delay_above_the_default_cap_is_the_cap() -> None:
    assert delays_s(RetryPolicy.exponential("1h", jitter=0), 2) == [3600, 3600]
    assert delays_s(RetryPolicy.linear("20m", jitter=0), 2) == [1200, 1200]
    assert RetryPolicy.exponential("15s").max_delay == timedelta(minutes=15)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RetryPolicy(delay=timedelta(hours=1)),
        lambda: RetryPolicy.exponential("1h", max_delay="15m"),
        lambda: RetryPolicy.linear("1h", max_delay="15m"),
    ],
)
def test_a_first_delay_above_the_given_cap_is_refused_and_not_cut(make: Callable[[], RetryPolicy]) -> None:
    with pytest.raises(
        ConfigurationError, match=r"RetryPolicy\.delay is 3600s; .* max_delay, which is 900s"
    ) as caught:
        make()

    assert caught.value.field == "delay"


def test_no_delay_stays_none_however_often_it_is_multiplied() -> None:
    assert set(delays_s(RetryPolicy.exponential(0, max_attempts=2000), 1500)) == {0}


def test_a_strategy_may_be_given_as_text() -> None:
    policy = RetryPolicy(strategy="fixed", jitter=0)  # type: ignore[arg-type]  # accepted at the edge

    assert policy.strategy is RetryStrategy.FIXED
    assert delays_s(policy, 2) == [1, 1]


def test_linear_delays_grow_by_the_first() -> None:
    assert delays_s(RetryPolicy.linear(10, max_delay=25, jitter=0), 4) == [10, 20, 25, 25]


def test_the_strategy_none_by_its_name_means_one_attempt() -> None:
    policy = RetryPolicy(strategy=RetryStrategy.NONE)

    assert policy == RetryPolicy.none()
    with pytest.raises(
        ConfigurationError, match="max_attempts is 3; it must be 1 where the strategy is none"
    ):
        RetryPolicy(strategy=RetryStrategy.NONE, max_attempts=3)


def test_no_strategy_means_one_attempt() -> None:
    assert delays_s(RetryPolicy.none(), 1) == [None]


@pytest.mark.parametrize("policy", [RetryPolicy.none(), RetryPolicy(), RetryPolicy.fixed(max_attempts=50)])
def test_a_jobs_own_max_retries_takes_the_place_of_the_attempts(policy: RetryPolicy) -> None:
    delays = delays_s(policy, 4, max_retries=2)

    assert None not in delays[:2]
    assert delays[2:] == [None, None]


@given(seed=st.integers(), failures=st.integers(1, 4))
def test_jitter_stays_within_a_quarter(seed: int, failures: int) -> None:
    delay = RetryPolicy().decide(failures=failures, error="E", max_retries=None, rng=random.Random(seed))

    base = timedelta(seconds=2.0 ** (failures - 1))
    assert delay is not None
    assert 0.75 * base <= delay <= 1.25 * base


def test_jitter_is_that_of_the_given_random_source() -> None:
    assert delays_s(RetryPolicy(), 4, seed=7) == delays_s(RetryPolicy(), 4, seed=7)
    assert delays_s(RetryPolicy(), 4, seed=7) != delays_s(RetryPolicy(), 4, seed=8)


@given(seed=st.integers())
def test_jitter_never_exceeds_the_cap(seed: int) -> None:
    policy = RetryPolicy.fixed(max_attempts=2)
    capped = RetryPolicy.exponential(100, max_delay=100, jitter=1)

    assert policy.next_delay(failures=1, max_retries=None, rng=random.Random(seed)) is not None
    delay = capped.next_delay(failures=1, max_retries=None, rng=random.Random(seed))
    assert delay is not None
    assert timedelta(0) <= delay <= timedelta(seconds=100)


@pytest.mark.parametrize(
    "entry", [Busy, ConnectionError, OSError, "Busy", "ConnectionError", f"{__name__}.Busy"]
)
def test_a_listed_exception_is_matched_by_type_or_name_with_its_subclasses(
    entry: type[BaseException] | str,
) -> None:
    only = RetryPolicy.exponential(retry_on=(entry,))
    never = RetryPolicy.exponential(never_retry=(entry,))

    assert only.retries_on(Busy())
    assert not only.retries_on(KeyError("a"))
    assert not never.retries_on(Busy())
    assert never.retries_on(KeyError("a"))


@pytest.mark.parametrize("module", ["redis.exceptions", "__main__"])
def test_a_type_is_not_another_one_of_the_same_name_and_a_name_is_both(module: str) -> None:
    other = type("ConnectionError", (Exception,), {"__module__": module})
    by_type = RetryPolicy.exponential(retry_on=(ConnectionError,))
    by_name = RetryPolicy.exponential(retry_on=("ConnectionError",))
    never = RetryPolicy.exponential(never_retry=(other,))

    assert not by_type.retries_on(other())
    assert not by_type.retries_on(nested(other(), ConnectionError()))
    assert by_name.retries_on(nested(other(), ConnectionError()))
    assert never.retries_on(nested(ConnectionError()))
    assert not never.retries_on(nested(other(), ConnectionError()))


def test_a_type_is_not_another_one_that_is_known_by_name_only() -> None:
    policy = RetryPolicy.exponential(retry_on=(ConnectionError,))

    assert policy.retries_on("ConnectionError")
    assert not policy.retries_on("redis.exceptions.ConnectionError")


def test_a_type_of_a_module_that_was_imported_twice_is_the_same() -> None:
    first, second = (type("Late", (Exception,), {"__module__": "app.errors"}) for _ in range(2))

    assert RetryPolicy.exponential(retry_on=(first,)).retries_on(second())


def test_an_exception_known_by_name_only_is_matched_by_its_own_name() -> None:
    policy = RetryPolicy.exponential(retry_on=(Busy, JobTimeout))

    assert policy.retries_on(f"{__name__}.Busy")
    assert policy.retries_on("JobTimeout")
    assert not policy.retries_on("KeyError")


def test_never_wins_over_only() -> None:
    policy = RetryPolicy.exponential(retry_on=(OSError,), never_retry=(Busy,))

    assert policy.retries_on(OSError())
    assert not policy.retries_on(Busy())


def nested(*errors: Exception, depth: int = 0) -> ExceptionGroup[Exception]:
    group = ExceptionGroup("unhandled errors in a TaskGroup", errors)
    for _ in range(depth):
        group = ExceptionGroup("around it", [group])
    return group


@pytest.mark.parametrize("depth", [0, 1, 20])
def test_the_lists_hold_for_what_is_in_a_group_at_any_depth(depth: int) -> None:
    only = RetryPolicy.exponential(retry_on=(OSError,))
    never = RetryPolicy.exponential(never_retry=(Busy,))
    both = RetryPolicy.exponential(retry_on=(OSError,), never_retry=(Busy,))

    assert only.retries_on(nested(OSError(), Busy(), depth=depth))
    assert not only.retries_on(nested(OSError(), KeyError("a"), depth=depth))
    assert not never.retries_on(nested(OSError(), Busy(), depth=depth))
    assert never.retries_on(nested(OSError(), depth=depth))
    assert not both.retries_on(nested(OSError(), Busy(), depth=depth))


def test_a_group_may_be_listed_itself() -> None:
    group = nested(KeyError("a"))

    assert RetryPolicy.exponential(retry_on=(ExceptionGroup,)).retries_on(group)
    assert not RetryPolicy.exponential(never_retry=("ExceptionGroup",)).retries_on(group)


def test_a_single_exception_needs_no_tuple() -> None:
    policy = RetryPolicy(retry_on=KeyError)  # type: ignore[arg-type]  # accepted at the edge

    assert policy.retry_on == (KeyError,)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", 0),
        ("max_attempts", True),
        ("max_attempts", 2.5),
        ("delay", -1),
        ("delay", "soon"),
        ("delay", timedelta(days=400)),
        ("multiplier", 0.5),
        ("multiplier", float("nan")),
        ("jitter", 1.5),
        ("jitter", -0.1),
        ("retry_on", (3,)),
        ("never_retry", (int,)),
        ("strategy", "exponental"),
        ("strategy", None),
        ("strategy", []),
    ],
)
def test_a_field_out_of_bounds_is_refused_by_name(field: str, value: object) -> None:
    fields: dict[str, Any] = {field: value}

    with pytest.raises(ConfigurationError, match=f"RetryPolicy.{field}"):
        RetryPolicy(**fields)


def test_a_misspelt_strategy_is_told_what_there_is() -> None:
    with pytest.raises(ConfigurationError, match="must be one of none, fixed, exponential, linear"):
        RetryPolicy(strategy="exponental")  # type: ignore[arg-type]
