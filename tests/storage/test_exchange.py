"""Tests of the storage: outcomes written and jobs claimed in one exchange, all of it or nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import count, cycle, islice
from random import Random
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import AttemptKind, Cancelled, Crash, Failure, Outcome, Release, Retry, Success
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import StateName
from qml_mp.errors import OutcomeRefused, StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Exchanged, Fetch, Finished, JobFilter
from tests import failpoints
from tests.storage.claimer import FETCH, register
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    NO,
    before_query,
    claim_some,
    fetch,
    in_children,
    interrupt,
    open_patiently,
    present,
    states,
)

TOO_LARGE = Success(result="x" * 2**21, duration=timedelta(seconds=1))
OUTCOMES: list[Outcome] = [
    DONE,
    Retry(error=NO, delay=HOUR),
    Failure(error=NO),
    Crash(error=NO, rerun_after=None),
]
STATES = [StateName.SUCCEEDED, StateName.AWAITING_RETRY, StateName.FAILED, StateName.FAILED]


def test_outcomes_are_written_and_the_next_jobs_claimed(storage: Storage) -> None:
    held = claim_some(storage, 4)
    following = storage.enqueue_many(Job.new("work", priority=-n) for n in range(3))

    exchanged = storage.exchange(
        list(zip(held, OUTCOMES, strict=True)), fetch=fetch(), limit=2, retention=KEEP
    )

    assert exchanged.finished == tuple(Finished(accepted=True, state=state) for state in STATES)
    assert [done.job for done in exchanged.finished] == [present(storage, claim) for claim in held]
    assert [claim.job.id for claim in exchanged.claims] == following[:2]
    assert {claim.key for claim in storage.claims()} == {claim.key for claim in exchanged.claims}
    kinds = [[attempt.kind for attempt in storage.attempts(claim.job.id)] for claim in held]
    assert kinds == [[], [AttemptKind.FAILURE], [AttemptKind.FAILURE], [AttemptKind.CRASH]]


@pytest.mark.parametrize("limit", [0, 2, 10])
def test_as_many_are_claimed_as_were_asked_for_and_are_there(storage: Storage, limit: int) -> None:
    [claim] = claim_some(storage, 1)
    ids = storage.enqueue_many(Job.new("work") for _ in range(3))

    exchanged = storage.exchange([(claim, DONE)], fetch=fetch(), limit=limit, retention=KEEP)

    claimed = {claim.job.id for claim in exchanged.claims}
    assert claimed <= set(ids)
    assert len(claimed) == len(exchanged.claims) == len(storage.claims()) == min(limit, 3)


@pytest.mark.parametrize("which", [fetch(), fetch("a"), fetch("b", "a")], ids=["all", "one", "several"])
def test_claims_without_an_outcome_are_the_best_in_order(storage: Storage, which: Fetch) -> None:
    jobs = [Job.new("work", queue="a", priority=priority) for priority in (1, 3, 2, 0)]
    storage.enqueue_many(jobs)

    exchanged = storage.exchange((), fetch=which, limit=3, retention=KEEP)

    assert [claim.job.priority for claim in exchanged.claims] == [3, 2, 1]
    assert exchanged.finished == ()
    assert storage.exchange((), fetch=None, limit=3, retention=KEEP) == Exchanged(finished=(), claims=())


def test_a_lost_claim_changes_nothing_and_the_others_are_written(storage: Storage) -> None:
    first, lost, last = claim_some(storage, 3)
    storage.finish(lost, Release(reason="handed on"), retention=KEEP)
    newer = storage.fetch_and_lock_job(fetch(worker="worker-2"))
    assert newer is not None
    next_id = storage.enqueue(Job.new("work"))
    outcomes: list[tuple[Claim, Outcome]] = [
        (first, DONE),
        (lost, DONE),
        (replace(last, job=Job.new("gone")), DONE),
        (last, Failure(error=NO)),
    ]

    exchanged = storage.exchange(outcomes, fetch=fetch(), limit=2, retention=KEEP)

    assert [done.accepted for done in exchanged.finished] == [True, False, False, True]
    assert states(storage, (first, lost, last)) == [
        StateName.SUCCEEDED,
        StateName.PROCESSING,
        StateName.FAILED,
    ]
    assert present(storage, newer) == newer.job
    assert [claim.job.id for claim in exchanged.claims] == [next_id]


def test_a_cancel_that_was_asked_for_is_seen_by_its_own_outcome_alone(storage: Storage) -> None:
    held = claim_some(storage, 3)
    storage.request_cancel(held[1].job.id, reason="not wanted", retention=KEEP)

    release = Release(reason="shutdown")
    exchanged = storage.exchange([(claim, release) for claim in held], fetch=None, limit=0, retention=KEEP)

    wanted = [StateName.ENQUEUED, StateName.DELETED, StateName.ENQUEUED]
    assert [done.state for done in exchanged.finished] == states(storage, held) == wanted


@pytest.mark.fault(81)
@pytest.mark.parametrize("which", [None, fetch()], ids=["alone", "with claims"])
def test_one_refused_outcome_keeps_all_from_being_written_and_is_named(
    storage: Storage, which: Fetch | None
) -> None:
    held, place = claim_some(storage, 3), 1
    storage.enqueue(Job.new("work"))
    outcomes: list[tuple[Claim, Outcome]] = [(claim, DONE) for claim in held]
    outcomes[place] = (held[place], TOO_LARGE)

    with pytest.raises(OutcomeRefused) as caught:
        storage.exchange(outcomes, fetch=which, limit=2, retention=KEEP)

    assert (caught.value.job_id, caught.value.claim_seq) == (held[place].job.id, 1)
    assert {claim.key for claim in storage.claims()} == {claim.key for claim in held}
    outcomes[place] = (held[place], Failure(error=NO))
    exchanged = storage.exchange(outcomes, fetch=which, limit=2, retention=KEEP)
    assert all(done.accepted for done in exchanged.finished)


@pytest.mark.fault(77)
def test_an_epoch_that_is_over_claims_nothing_and_its_outcomes_are_written(storage: Storage) -> None:
    register(storage)
    held = claim_some(storage, 2, which=FETCH)
    storage.renew_epoch("w-1")
    storage.enqueue(Job.new("work"))

    exchanged = storage.exchange([(claim, DONE) for claim in held], fetch=FETCH, limit=2, retention=KEEP)

    assert [done.accepted for done in exchanged.finished] == [True, True]
    assert exchanged.claims == ()


@pytest.mark.fault(36)
def test_repeated_after_a_lost_reply_it_says_what_the_first_has_written(
    storage: Storage, reset_failpoints: None
) -> None:
    register(storage)
    held = claim_some(storage, 4, which=FETCH)
    storage.enqueue_many(Job.new("work") for _ in range(3))
    outcomes = list(zip(held, OUTCOMES, strict=True))

    failpoints.arm("storage.committed=raise:1")
    with pytest.raises(StorageUnavailable):
        storage.exchange(outcomes, fetch=FETCH, limit=2, retention=KEEP)
    failpoints.arm("")
    written = [present(storage, claim) for claim in held]
    again = storage.exchange(outcomes, fetch=None, limit=0, retention=KEEP)
    renewed = storage.renew_epoch("w-1")

    assert [done.state for done in again.finished] == STATES
    assert [done.job for done in again.finished] == written == [present(storage, claim) for claim in held]
    assert [len(storage.attempts(claim.job.id)) for claim in held] == [0, 1, 1, 1]
    assert renewed is not None
    assert len(renewed.claims) == 2  # of which the worker did not know


def test_of_successes_some_of_which_somebody_else_has_written_it_is_told_which(storage: Storage) -> None:
    held = claim_some(storage, 4)
    storage.exchange([(held[1], DONE), (held[2], DONE)], fetch=None, limit=0, retention=KEEP)

    done = storage.exchange([(claim, DONE) for claim in held], fetch=fetch(), limit=2, retention=KEEP)

    assert [finished.was_written for finished in done.finished] == [False, True, True, False]
    assert all(finished.accepted for finished in done.finished)


# Many outcomes written and many jobs claimed in one exchange.

MANY = 100
FETCHES = pytest.mark.parametrize(
    "which", [fetch(), fetch("a"), fetch("b", "a")], ids=["all queues", "one queue", "several queues"]
)
SUCCEEDED = Finished(accepted=True, state=StateName.SUCCEEDED)
LOST = Finished(accepted=False, state=None)


@FETCHES
def test_the_best_of_several_methods_are_claimed_in_order(storage: Storage, which: Fetch) -> None:
    rng = Random(1)
    jobs = [
        Job.new(rng.choice(["one", "two", "three"]), queue=rng.choice("ab"), priority=rng.randint(-2, 2))
        for _ in range(60)
    ]
    foreign = [Job.new("foreign", queue="a", priority=9) for _ in range(20)]
    storage.enqueue_many([*jobs, *foreign])
    known = replace(which, methods=("none", "one", "three", "two"))
    served = [job for job in jobs if not which.queues or job.queue in which.queues]
    served.sort(key=lambda job: (-job.priority, job.created_at, job.id))
    claimed: list[str] = []

    for limit in (1, 7, 1, 20, MANY):
        claims = storage.exchange((), fetch=known, limit=limit, retention=KEEP).claims
        assert len(claims) == min(limit, len(served) - len(claimed))
        claimed += [claim.job.id for claim in claims]

    assert claimed == [job.id for job in served]
    assert storage.exchange((), fetch=known, limit=MANY, retention=KEEP).claims == ()


@pytest.mark.parametrize("number", [MANY, 4])
def test_many_outcomes_are_written_while_as_many_jobs_are_claimed(storage: Storage, number: int) -> None:
    held = claim_some(storage, number)
    ids = storage.enqueue_many(Job.new("work", n) for n in range(number + 1))
    results: list[JsonValue] = [None, "", 'a "quoted" \\ text', {"ü": ["{", ",", "NULL"]}, 2**62, "x" * 9000]
    outcomes = [(claim, replace(DONE, result=results[n % 6])) for n, claim in enumerate(held)]

    exchanged = storage.exchange(outcomes, fetch=fetch(), limit=number, retention=KEEP)

    assert exchanged.finished == (SUCCEEDED,) * number
    assert [done.job for done in exchanged.finished] == [present(storage, claim) for claim in held]
    assert [present(storage, claim).result for claim in held] == [results[n % 6] for n in range(number)]
    assert [claim.job.id for claim in exchanged.claims] == ids[:number]
    assert [claim.job for claim in exchanged.claims] == [
        present(storage, claim) for claim in exchanged.claims
    ]


def test_of_many_successes_the_lost_ones_are_told_and_the_others_written(storage: Storage) -> None:
    held = claim_some(storage, 20)
    lost = held[3::5]
    for claim in lost:
        storage.finish(claim, Release(reason="handed on"), retention=KEEP)
    written_before = held[7]
    storage.finish(written_before, DONE, retention=KEEP)
    gone = replace(held[0], job=Job.new("gone"))
    outcomes: list[tuple[Claim, Outcome]] = [*((claim, DONE) for claim in held), (gone, DONE)]

    exchanged = storage.exchange(outcomes, fetch=fetch(), limit=2, retention=KEEP)

    assert exchanged.finished == (*(LOST if claim in lost else SUCCEEDED for claim in held), LOST)
    assert {claim.job.id for claim in exchanged.claims} <= {claim.job.id for claim in lost}
    assert len(exchanged.claims) == 2


@pytest.mark.parametrize("newer_first", [False, True])
def test_of_two_claims_of_one_job_the_newer_is_written(storage: Storage, newer_first: bool) -> None:
    other, older = claim_some(storage, 2)
    storage.finish(older, Release(reason="handed on"), retention=KEEP)
    newer = storage.fetch_and_lock_job(fetch())
    assert newer is not None
    both = [newer, older] if newer_first else [older, newer]

    exchanged = storage.exchange(
        [(claim, DONE) for claim in (*both, other)], fetch=None, limit=0, retention=KEEP
    )

    assert [done.accepted for done in exchanged.finished] == [claim is newer for claim in both] + [True]
    assert states(storage, (newer, other)) == [StateName.SUCCEEDED] * 2


@pytest.mark.fault(36)
def test_many_repeated_after_a_lost_reply_say_what_the_first_has_written(
    storage: Storage, reset_failpoints: None
) -> None:
    register(storage)
    held = claim_some(storage, MANY, which=FETCH)
    storage.enqueue_many(Job.new("work") for _ in range(MANY))
    outcomes = [(claim, DONE) for claim in held]

    failpoints.arm("storage.committed=raise:1")
    with pytest.raises(StorageUnavailable):
        storage.exchange(outcomes, fetch=FETCH, limit=60, retention=KEEP)
    failpoints.arm("")
    again = storage.exchange(outcomes, fetch=None, limit=0, retention=KEEP)
    renewed = storage.renew_epoch("w-1")

    assert again.finished == (SUCCEEDED,) * MANY
    assert [done.job for done in again.finished] == [present(storage, claim) for claim in held]
    assert renewed is not None
    assert len(renewed.claims) == 60  # of which the worker did not know


@pytest.mark.parametrize("seed", range(2))
def test_two_that_end_the_same_many_claims_do_not_wait_for_each_other_for_ever(
    url: str, storage: Storage, seed: int
) -> None:
    """Whatever the kinds of outcomes and their order: each has locked them all in the same."""
    held = claim_some(storage, MANY)
    storage.enqueue_many(Job.new("work") for _ in range(MANY))
    storage.close()
    kinds: list[Outcome] = [DONE, DONE, DONE, Failure(error=NO), Retry(error=NO, delay=HOUR)]

    def end(rng: Random) -> Callable[[], None]:
        outcomes = [(claim, rng.choice(kinds) if seed % 2 else DONE) for claim in held]
        rng.shuffle(outcomes)

        def end_them() -> None:
            with closing(open_patiently(url)) as mine:
                mine.exchange(outcomes, fetch=fetch(), limit=10, retention=KEEP)

        return end_them

    statuses = in_children([end(Random(seed)), end(Random(seed + 100)), end(Random(seed + 200))])

    assert statuses == [0, 0, 0]
    assert StateName.PROCESSING not in states(storage, held)
    assert len(storage.claims()) == 30


@pytest.mark.parametrize("url", ["postgres"], indirect=True)  # SQLite has one writer
def test_what_others_are_taking_keeps_nobody_from_what_is_free(
    storage: Storage, raw: Raw, connect: Callable[[], Any]
) -> None:
    best = storage.enqueue_many(Job.new("best", priority=9) for _ in range(60))
    free = storage.enqueue_many(Job.new("other") for _ in range(5))
    other = connect()
    other.execute(f"SELECT id FROM {raw.name('jobs')} WHERE method = 'best' FOR UPDATE")

    claimed = storage.exchange((), fetch=fetch(), limit=50, retention=KEEP).claims
    other.rollback()
    following = storage.exchange((), fetch=fetch(), limit=50, retention=KEEP).claims

    assert [claim.job.id for claim in claimed] == free
    assert [claim.job.id for claim in following] == best[:50]


# Exchanges of many outcomes and many claims, ended before any of their queries.

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
SIZES = [(1, 1), (20, 20)]
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
