"""Tests: what workers count in shared memory is read whole, and each claim once, whenever they die."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qml_mp.core.history import (
    BOUNDS_US,
    Ending,
    SeriesKey,
    Tally,
    numbers_of_one,
    tally_of,
)
from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.core.outcome import Success
from qml_mp.ipc.ended import EndedOutcomes, EndedTable
from qml_mp.supervisor.workers.totals import EndTotals
from tests.until import PATIENCE_S

DONE = Success(result=None, duration=timedelta(milliseconds=3))
durations_us = st.integers(0, 2**53 - 1) | st.sampled_from(BOUNDS_US) | st.integers(0, 3000)
SUCCEEDED = SeriesKey(method="resize", queue="images", ending=Ending.SUCCEEDED)


@pytest.fixture
def region() -> EndedOutcomes:
    return EndedTable(2).region(1)


@pytest.fixture
def totals(region: EndedOutcomes) -> EndTotals:
    totals = EndTotals()
    totals.follow("w", region.counts)
    return totals


def tallies(totals: EndTotals) -> dict[SeriesKey, Tally]:
    totals.look()
    return {key: tally_of(numbers) for key, numbers in totals.numbers.items()}


def times(region: EndedOutcomes, *, method: str = "resize", waited_us: int = 0) -> tuple[int, int, int]:
    return region.counts.pair(method, "images"), waited_us, 3000


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), durations_us, durations_us), min_size=1, max_size=9),
        max_size=4,
    )
)
def test_claims_that_are_counted_together_are_counted_as_one_by_one(
    commits: list[list[tuple[str, int, int]]],
) -> None:
    region, totals = EndedTable(1).region(0), EndTotals()
    totals.follow("w", region.counts)
    one_by_one: dict[str, Tally] = {}

    for claims in commits:
        for method, waited_us, ran_us in claims:
            one = tally_of(numbers_of_one(waited_us=waited_us, ran_us=ran_us))
            one_by_one[method] = one_by_one.get(method, Tally()) + one
        region.counts.count(
            [(region.counts.pair(method, "q"), waited_us, ran_us) for method, waited_us, ran_us in claims],
            Ending.SUCCEEDED,
        )
        region.empty()

    assert {key.method: tally for key, tally in tallies(totals).items()} == one_by_one


def count_for_ever(region: EndedOutcomes) -> None:
    number = 0
    job_id = new_job_id()
    while True:
        first = number
        for _ in range(number % 5 + 1):
            number += 1
            region.append(ClaimKey(job_id=job_id, claim_seq=number), DONE, times(region))
        region.counts.count([times(region) for _ in range(first, number)], Ending.SUCCEEDED)
        region.empty()


def test_a_killed_worker_has_counted_each_claim_or_left_it() -> None:
    for _ in range(60):
        region, totals = EndedTable(1).region(0), EndTotals()
        totals.follow("w", region.counts)
        child = os.fork()
        if child == 0:
            count_for_ever(region)
        deadline = time.monotonic() + PATIENCE_S
        while tallies(totals).get(SUCCEEDED, Tally()).count < 50:
            assert time.monotonic() < deadline

        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

        totals.part_from("w")
        tally = tallies(totals)[SUCCEEDED]
        left = sorted(key.claim_seq for key in region.uncounted())
        assert tally.waited.count == tally.ran.count
        assert tally.ran.sum_us == 3000 * tally.count
        assert left == list(range(tally.count + 1, tally.count + 1 + len(left)))
