"""Tests: what workers count in shared memory is read whole, and each claim once, whenever they die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qml_mp.core.history import (
    BOUNDS_US,
    MOST_NAMES,
    OTHER,
    Ending,
    SeriesKey,
    Tally,
    numbers_of_one,
    tally_of,
)
from qml_mp.core.job import ClaimKey, new_job_id
from qml_mp.core.outcome import Success
from qml_mp.ipc.counts import CountTable, EndCounts
from qml_mp.ipc.ended import REGION_BYTES, EndedOutcomes, EndedTable
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


def test_a_claim_is_counted_when_what_came_of_it_is_dropped(region: EndedOutcomes, totals: EndTotals) -> None:
    region.append(ClaimKey(job_id=new_job_id(), claim_seq=1), DONE, times(region))
    region.counts.count([times(region, waited_us=1_500_000)], Ending.SUCCEEDED)
    before = tallies(totals)

    region.empty()

    tally = tallies(totals)[SUCCEEDED]
    assert before == {}
    assert tally.count == 1
    assert (tally.waited.sum_us, tally.ran.sum_us) == (1_500_000, 3000)
    assert timedelta(seconds=1) < (tally.waited.quantile(0.5) or timedelta()) <= timedelta(seconds=2)


def test_a_claim_that_is_dropped_but_not_written_is_not_counted(
    region: EndedOutcomes, totals: EndTotals
) -> None:
    region.append(ClaimKey(job_id=new_job_id(), claim_seq=1), DONE, times(region))

    region.empty()

    assert tallies(totals) == {}


def test_what_is_not_counted_tells_the_times_and_the_names(region: EndedOutcomes) -> None:
    kept, too_large = (ClaimKey(job_id=new_job_id(), claim_seq=1) for _ in range(2))
    region.append(kept, DONE, times(region))

    was_kept = region.append(
        too_large, Success(result="x" * REGION_BYTES, duration=timedelta()), times(region)
    )

    left = region.uncounted()
    assert not was_kept
    assert left.keys() == {kept, too_large}
    assert (left[kept].method, left[kept].queue, left[kept].ran_us) == ("resize", "images", 3000)
    assert left[kept].outcome == DONE
    assert left[too_large].outcome is None
    assert region.read()[1].keys() == {kept}


def test_a_claim_whose_outcome_never_lay_here_is_counted_at_once_and_in_place_of_no_other(
    region: EndedOutcomes, totals: EndTotals
) -> None:
    first, second = (ClaimKey(job_id=new_job_id(), claim_seq=1) for _ in range(2))
    region.append(first, DONE, times(region))
    region.counts.count([times(region)], Ending.SUCCEEDED)
    region.empty()

    region.count(times(region), Ending.CANCELLED)
    region.append(second, DONE, times(region))

    assert {key.ending: tally.count for key, tally in tallies(totals).items()} == {
        Ending.SUCCEEDED: 1,
        Ending.CANCELLED: 1,
    }
    assert region.uncounted().keys() == {second}


def test_what_ended_while_the_others_were_written_is_left(region: EndedOutcomes, totals: EndTotals) -> None:
    first, second = (ClaimKey(job_id=new_job_id(), claim_seq=1) for _ in range(2))
    region.append(first, DONE, times(region))
    end = region.end
    region.append(second, DONE, times(region))
    region.counts.count([times(region)], Ending.SUCCEEDED)

    region.drop_until(end)

    assert region.uncounted().keys() == {second}
    assert tallies(totals)[SUCCEEDED].count == 1


def test_a_name_that_is_longer_than_all_there_is_place_for_is_counted_with_the_others(
    region: EndedOutcomes, totals: EndTotals
) -> None:
    region.counts.count([times(region, method="m" * 70_000)], Ending.SUCCEEDED)

    region.empty()

    assert tallies(totals)[SeriesKey(method=OTHER, queue=OTHER, ending=Ending.SUCCEEDED)].count == 1


def test_methods_without_a_place_are_counted_together(region: EndedOutcomes, totals: EndTotals) -> None:
    for number in range(MOST_NAMES + 10):
        region.counts.count([times(region, method=f"m{number}")], Ending.SUCCEEDED)

    region.empty()

    found = tallies(totals)
    other = found[SeriesKey(method=OTHER, queue=OTHER, ending=Ending.SUCCEEDED)]
    assert len(found) == MOST_NAMES + 1
    assert other.count == 10


def test_more_kinds_of_ends_than_cells_are_counted_too(region: EndedOutcomes, totals: EndTotals) -> None:
    for number in range(MOST_NAMES):
        for ending in Ending:
            region.counts.count([times(region, method=f"m{number}")], ending)
            region.counts.count([times(region, method=f"m{number}")], ending)

    region.empty()

    assert sum(tally.count for tally in tallies(totals).values()) == 2 * MOST_NAMES * len(Ending)


def test_a_new_worker_in_the_slot_begins_at_nothing() -> None:
    table, totals = EndedTable(1), EndTotals()
    for worker in ("first", "second"):
        region = table.region(0)
        totals.follow(worker, region.counts)
        region.counts.count([times(region)], Ending.SUCCEEDED)
        region.empty()
        totals.part_from(worker)

    assert tallies(totals)[SUCCEEDED].count == 2


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


def test_a_sum_that_is_larger_than_a_word_stays_at_the_largest_and_all_are_counted() -> None:
    region, totals = EndedTable(1).region(0), EndTotals()
    totals.follow("w", region.counts)
    pair = region.counts.pair("resize", "images")

    for _ in range(3):
        region.counts.count([(pair, 2**53 - 1, 2**53 - 1)] * 1024, Ending.SUCCEEDED)
        region.empty()

    told = tallies(totals)[SUCCEEDED]
    assert (told.count, told.waited.sum_us, told.ran.sum_us) == (3 * 1024, 2**64 - 1, 2**64 - 1)


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


class Struck:
    """The words of a region, where something happens before one of the looks and stores."""

    def __init__(self, words: Any, at: int, happen: Callable[[], None]) -> None:
        self._words, self._left, self._happen = words, at, happen

    @property
    def has_happened(self) -> bool:
        return self._left < 0

    def _touch(self) -> Any:
        self._left -= 1
        if self._left == -1:
            self._happen()
        return self._words

    def __getitem__(self, place: Any) -> Any:
        return self._touch()[place]

    def __setitem__(self, place: Any, value: Any) -> None:
        self._touch()[place] = value


class Killed(BaseException):
    pass


def be_killed() -> None:
    raise Killed


def count_of(claims: int, counts: EndCounts, *, dies_at: int | None = None) -> None:
    """Count that many claims, or be killed at one of the looks and stores of their commit."""
    counts.count([(counts.pair("resize", "images"), 0, 3000)] * claims, Ending.SUCCEEDED)
    if dies_at is not None:
        counts._words = Struck(counts._words, dies_at, be_killed)  # type: ignore[assignment]
    counts.commit(1)


@pytest.mark.parametrize("dies_at", range(12))
@pytest.mark.parametrize("commits", range(4))
def test_commits_between_any_two_looks_of_the_supervisor_are_counted_once(commits: int, dies_at: int) -> None:
    """And the beginning of one more, of a worker that is killed in it or goes on."""
    look, happens = 0, True
    while happens:
        table, totals = CountTable(1), EndTotals()
        worker, seen = table.region(0), table.region(0)
        totals.follow("w", seen)
        for claims in (1, 2):
            count_of(claims, worker)
        totals.look()
        count_of(4, worker)
        committed = 7

        def meanwhile(worker: EndCounts = worker) -> None:
            nonlocal committed
            for _ in range(commits):
                count_of(8, worker)
                committed += 8
            with suppress(Killed):
                count_of(100, worker, dies_at=dies_at)
                committed += 100

        words = seen._words
        struck = Struck(words, look, meanwhile)
        seen._words = struck  # type: ignore[assignment]
        totals.look()
        seen._words = words
        totals.part_from("w")

        assert tallies(totals)[SUCCEEDED].count == committed, look
        look, happens = look + 1, struck.has_happened
    assert look > 5
