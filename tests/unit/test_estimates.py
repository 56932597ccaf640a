"""Tests: a worker claims one job at a time, and more only while jobs prove short."""

from __future__ import annotations

import pytest

from qml_mp.child.estimate import LONG_S, Estimates


def limits(estimates: Estimates, *, took_s: float, batches: int) -> list[int]:
    """The limits of so many claims, of which each is followed by a job that takes so long."""
    found = []
    for _ in range(batches):
        found.append(estimates.next_limit())
        estimates.note("job", took_s)
    return found


def test_it_begins_with_one_and_doubles_up_to_the_setting() -> None:
    assert limits(Estimates(most=10), took_s=0.0001, batches=6) == [1, 2, 4, 8, 10, 10]


@pytest.mark.parametrize(("took_s", "most"), [(0.001, 45), (0.005, 9), (0.03, 1), (10.0, 1)])
def test_no_more_is_claimed_than_is_worth_the_time(took_s: float, most: int) -> None:
    assert max(limits(Estimates(most=100), took_s=took_s, batches=20)) == most


def test_no_more_is_claimed_than_payloads_have_room_for() -> None:
    estimates = Estimates(most=100)
    limits(estimates, took_s=0.0001, batches=10)

    found = [estimates.next_limit(payload_chars=chars) for chars in (100, 1024 * 1024, 8 * 1024 * 1024)]

    assert found == [100, 4, 1]


def test_after_a_claim_that_failed_it_is_one_and_grows_again_as_jobs_end() -> None:
    estimates = Estimates(most=100)
    limits(estimates, took_s=0.0001, batches=10)

    estimates.claim_failed()

    assert [estimates.next_limit(), estimates.next_limit()] == [1, 1]
    assert limits(estimates, took_s=0.0001, batches=4) == [1, 2, 4, 8]


def test_without_a_job_it_does_not_grow() -> None:
    estimates = Estimates(most=100)

    assert [estimates.next_limit() for _ in range(5)] == [1] * 5


def test_after_a_long_job_it_is_one_again_and_grows_anew() -> None:
    estimates = Estimates(most=100)
    limits(estimates, took_s=0.0001, batches=10)

    estimates.note("long", 2.0)

    assert estimates.next_limit() == 1
    assert max(limits(estimates, took_s=0.0001, batches=30)) == 100


def test_a_worker_that_has_met_a_long_job_holds_less_for_some_time() -> None:
    estimates = Estimates(most=100)
    before = max(limits(estimates, took_s=0.00091, batches=20))

    estimates.note("long", 2.0)
    beside = max(limits(estimates, took_s=0.00091, batches=5000))
    for _ in range(5000):
        estimates.note("job", 0.00091)
    after = max(limits(estimates, took_s=0.00091, batches=20))

    assert (before, beside, after) == (49, 21, 49)


def test_each_method_has_an_estimate_of_its_own() -> None:
    estimates = Estimates(most=10)
    estimates.note("short", 0.001)
    estimates.note("long", 2.0)

    assert estimates.of("short") == 0.001
    assert (estimates.of("long") or 0) > 0.05
    assert estimates.of("unknown") is None


def test_what_fits_is_counted_from_the_next_on() -> None:
    estimates = Estimates(most=10)
    estimates.note("short", 0.002)
    estimates.note("middling", 0.03)

    assert estimates.fitting(["short"] * 100) == 22
    assert estimates.fitting(["middling", "short", "middling", "short"]) == 2
    assert estimates.fitting([]) == 0


def test_what_is_claimed_during_a_job_waits_for_twice_as_long_where_that_is_no_short_one() -> None:
    estimates = Estimates(most=100)
    estimates.note("short", 0.005)
    estimates.note("longer", 0.05)

    assert [estimates.patience_s(method) for method in ("short", "longer", "new")] == [LONG_S, 0.1, LONG_S]
