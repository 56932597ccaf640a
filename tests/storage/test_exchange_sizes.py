"""Tests of the storage: exchanges of many outcomes and many claims, ended before any of their queries."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from itertools import count, cycle, islice

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import AttemptKind, Cancelled, Crash, Failure, Outcome, Retry, Success
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests import failpoints
from tests.storage.helpers import DONE, HOUR, KEEP, NO, fetch, in_children, open_patiently
from tests.storage.test_exchange import before_query, claim_some, interrupt

Ends = list[tuple[Claim, Outcome]]

KINDS: list[tuple[Outcome, StateName, AttemptKind | None]] = [
    (DONE, StateName.SUCCEEDED, None),
    (Success(result=None, duration=timedelta(), not_stored="it is no JSON"), StateName.SUCCEEDED, None),
    (Retry(error=NO, delay=HOUR), StateName.AWAITING_RETRY, AttemptKind.FAILURE),
    (Success(result=[1, "two"], duration=timedelta(seconds=2)), StateName.SUCCEEDED, None),
    (Failure(error=NO, kind=AttemptKind.TIMEOUT), StateName.FAILED, AttemptKind.TIMEOUT),
    (Cancelled(reason="not wanted"), StateName.DELETED, AttemptKind.CANCELLED),
    (Crash(error=NO, rerun_after=HOUR), StateName.AWAITING_RETRY, AttemptKind.CRASH),
    (Crash(error=NO, rerun_after=None), StateName.FAILED, AttemptKind.CRASH),
]
"""Outcomes after which the job is not claimed again at once, and what becomes of it."""
SIZES = [(1, 1), (1, 20), (3, 2), (20, 1), (20, 20)]
sizes = pytest.mark.parametrize(("number", "limit"), SIZES)


@pytest.fixture
def ends(storage: Storage, number: int) -> Ends:
    """Claims with an outcome each, and as many jobs more than can be asked for."""
    held = claim_some(storage, number)
    storage.enqueue_many(Job.new("work", n) for n in range(25))
    return [(claim, outcome) for claim, (outcome, _, _) in zip(held, cycle(KINDS), strict=False)]


@sizes
def test_an_exchange_of_any_size_writes_and_claims_all_in_one_commit(
    storage: Storage, ends: Ends, number: int, limit: int
) -> None:
    exchanged = storage.exchange(ends, fetch=fetch(), limit=limit, retention=KEEP)

    assert all(finished.accepted for finished in exchanged.finished)
    assert [finished.state for finished in exchanged.finished] == wanted_states(number)
    assert_written(storage, ends)
    assert {claim.key for claim in storage.claims()} == {claim.key for claim in exchanged.claims}
    assert len(exchanged.claims) == limit


@sizes
def test_interrupted_before_any_of_its_queries_an_exchange_of_any_size_has_done_nothing(
    storage: Storage, ends: Ends, number: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(storage)

    for query in count(1):
        with monkeypatch.context() as patched:
            before_query(storage, query, interrupt, patched)
            try:
                exchanged = storage.exchange(ends, fetch=fetch(), limit=limit, retention=KEEP)
                break
            except StorageUnavailable:
                assert rows(storage) == before

    assert query > 1
    assert [finished.state for finished in exchanged.finished] == wanted_states(number)
    assert len(exchanged.claims) == limit
    assert_written(storage, ends)


@pytest.mark.fault(3)
@sizes
def test_a_process_killed_at_any_query_of_an_exchange_leaves_all_or_nothing(
    url: str, storage: Storage, ends: Ends, number: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows(storage)

    def exchange(query: int) -> None:
        with closing(open_patiently(url)) as mine:
            before_query(mine, query, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
            mine.exchange(ends, fetch=fetch(), limit=limit, retention=KEEP)

    for query in islice(_ever_farther(), 100):
        storage.close()
        [status] = in_children([lambda query=query: exchange(query)])  # type: ignore[misc]
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert rows(storage) == before

    assert query > 1
    assert_written(storage, ends)
    assert len(storage.claims()) == limit


@pytest.mark.fault(36)
@sizes
def test_a_process_killed_right_after_an_exchange_has_done_all_of_it_and_to_repeat_it_adds_nothing(
    url: str, storage: Storage, ends: Ends, number: int, limit: int
) -> None:
    storage.close()

    def exchange() -> None:
        with closing(open_patiently(url)) as mine:
            failpoints.arm("storage.committed=kill:1")
            mine.exchange(ends, fetch=fetch(), limit=limit, retention=KEEP)

    [status] = in_children([exchange])

    assert os.WTERMSIG(status) == signal.SIGKILL
    assert_written(storage, ends)
    assert len(storage.claims()) == limit
    after = rows(storage)
    again = storage.exchange(list(reversed(ends)), fetch=None, limit=0, retention=KEEP)
    assert all(finished.accepted for finished in again.finished)
    assert [finished.state for finished in reversed(again.finished)] == wanted_states(number)
    assert rows(storage) == after
    assert_written(storage, ends)


def wanted_states(number: int) -> list[StateName]:
    return [state for _, state, _ in islice(cycle(KINDS), number)]


def assert_written(storage: Storage, ends: Ends) -> None:
    """Every outcome is what its own claim came to, with the attempt that belongs to it, once."""
    present = rows(storage)
    for (claim, outcome), (_, state, kind) in zip(ends, cycle(KINDS), strict=False):
        job = present[claim.job.id]
        assert (job.state_name, job.claim_seq) == (state, 1)
        kinds = [attempt.kind for attempt in storage.attempts(job.id)]
        assert kinds == ([] if kind is None else [kind])
        if isinstance(outcome, Success):
            assert (job.result, job.result_not_stored) == (outcome.result, outcome.not_stored)
        else:
            failures = kind in (AttemptKind.FAILURE, AttemptKind.TIMEOUT)
            assert (job.failures, job.crashes) == (failures, kind is AttemptKind.CRASH)


def rows(storage: Storage) -> dict[str, Job]:
    """Every job as it is now."""
    return {job.id: job for job in storage.list_jobs(JobFilter(), limit=1000).jobs}


def _ever_farther() -> Iterator[int]:
    """1, 2, 3, 5, 8, …: a process for every query of the longest would take minutes."""
    query, following = 1, 2
    while True:
        yield query
        query, following = following, query + following
