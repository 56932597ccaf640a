"""Tests of the storage: outcomes written and jobs claimed in one exchange, all of it or nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import AttemptKind, Crash, Failure, Outcome, Release, Retry, Success
from qml_mp.core.state import StateName
from qml_mp.errors import OutcomeRefused, StorageUnavailable
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Exchanged, Fetch, Finished
from tests import failpoints
from tests.storage.claimer import FETCH, register
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, fetch, in_children, open_patiently, present
from tests.storage.test_refusals import full

TOO_LARGE = Success(result="x" * 2**21, duration=timedelta(seconds=1))
OUTCOMES: list[Outcome] = [
    DONE,
    Retry(error=NO, delay=HOUR),
    Failure(error=NO),
    Crash(error=NO, rerun_after=None),
]
STATES = [StateName.SUCCEEDED, StateName.AWAITING_RETRY, StateName.FAILED, StateName.FAILED]


def claim_some(storage: Storage, number: int, *, which: Fetch | None = None) -> tuple[Claim, ...]:
    """Claims of so many new jobs, all there are."""
    storage.enqueue_many(Job.new("work", n) for n in range(number))
    claims = storage.exchange((), fetch=which or fetch(), limit=number, retention=KEEP).claims
    assert len(claims) == number
    return claims


def states(storage: Storage, claims: tuple[Claim, ...]) -> list[StateName]:
    return [present(storage, claim).state_name for claim in claims]


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


def test_results_come_in_the_order_given_whatever_the_age_of_the_claims(storage: Storage) -> None:
    held = claim_some(storage, 4)
    given = list(zip(reversed(held), OUTCOMES, strict=True))

    exchanged = storage.exchange(given, fetch=None, limit=1, retention=KEEP)

    assert [done.state for done in exchanged.finished] == STATES
    assert [done.job and done.job.id for done in exchanged.finished] == [claim.job.id for claim, _ in given]
    assert exchanged.claims == ()


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 10])
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
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("which", [None, fetch()], ids=["alone", "with claims"])
def test_one_refused_outcome_keeps_all_from_being_written_and_is_named(
    storage: Storage, which: Fetch | None, place: int
) -> None:
    held = claim_some(storage, 3)
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


@pytest.mark.fault(81)
def test_an_outcome_that_the_database_refuses_is_named_too(storage: Storage, raw: Raw) -> None:
    held = claim_some(storage, 3)
    if raw.is_sqlite:
        raw.run("CREATE UNIQUE INDEX one ON qml_jobs (state) WHERE state = 'failed'")
        raw.add_job(state="failed")
    else:
        raw.run("ALTER TABLE {jobs} ADD CHECK (state <> 'failed')")
    outcomes: list[tuple[Claim, Outcome]] = [(held[0], DONE), (held[1], Failure(error=NO)), (held[2], DONE)]

    with pytest.raises(OutcomeRefused) as caught:
        storage.exchange(outcomes, fetch=fetch(), limit=1, retention=KEEP)

    assert caught.value.job_id == held[1].job.id
    assert states(storage, held) == [StateName.PROCESSING] * 3


@pytest.mark.fault(81)
def test_a_job_that_cannot_be_claimed_is_passed_over_and_hinders_no_outcome(
    storage: Storage, raw: Raw
) -> None:
    held = claim_some(storage, 2)
    bad_id = raw.add_job(claim_seq=full(raw), priority=9)
    ids = storage.enqueue_many(Job.new("work") for _ in range(2))

    exchanged = storage.exchange([(claim, DONE) for claim in held], fetch=fetch(), limit=5, retention=KEEP)

    assert all(done.accepted for done in exchanged.finished)
    assert sorted(claim.job.id for claim in exchanged.claims) == sorted(ids)
    assert present(storage, bad_id).state_name is StateName.FAILED


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


def test_interrupted_before_any_of_its_queries_it_has_done_nothing(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = claim_some(storage, 4)
    storage.enqueue_many(Job.new("work") for _ in range(2))
    outcomes = list(zip(held, OUTCOMES, strict=True))
    before = [present(storage, claim) for claim in held]

    for number in count(1):
        with monkeypatch.context() as patched:
            left = before_query(storage, number, interrupt, patched)
            try:
                exchanged = storage.exchange(outcomes, fetch=fetch(), limit=2, retention=KEEP)
                break
            except StorageUnavailable:
                assert left() == 0
        assert [present(storage, claim) for claim in held] == before
        assert {claim.key for claim in storage.claims()} == {claim.key for claim in held}
        assert [storage.attempts(claim.job.id) for claim in held] == [()] * 4

    assert number > len(outcomes) * 2  # one to lock them, two for each that is no success, and the claim
    assert [done.state for done in exchanged.finished] == STATES
    assert len(exchanged.claims) == 2


def test_of_successes_some_of_which_somebody_else_has_written_it_is_told_which(storage: Storage) -> None:
    held = claim_some(storage, 4)
    storage.exchange([(held[1], DONE), (held[2], DONE)], fetch=None, limit=0, retention=KEEP)

    done = storage.exchange([(claim, DONE) for claim in held], fetch=fetch(), limit=2, retention=KEEP)

    assert [finished.was_written for finished in done.finished] == [False, True, True, False]
    assert all(finished.accepted for finished in done.finished)


@pytest.mark.parametrize("number", [1, 3, 5, 7, 8, None], ids=lambda number: f"query {number}")
def test_a_worker_that_is_killed_in_it_leaves_all_or_nothing(
    url: str, storage: Storage, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    held = claim_some(storage, 4)
    storage.enqueue_many(Job.new("work") for _ in range(2))
    storage.close()

    def exchange() -> None:
        with closing(open_patiently(url)) as mine:
            if number is None:
                failpoints.arm("storage.committed=kill:1")
            else:
                before_query(mine, number, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
            outcomes = list(zip(held, OUTCOMES, strict=True))
            mine.exchange(outcomes, fetch=fetch(), limit=2, retention=KEEP)

    [status] = in_children([exchange])

    assert os.WTERMSIG(status) == signal.SIGKILL
    wanted = [StateName.PROCESSING] * 4 if number else STATES
    assert states(storage, held) == wanted
    assert len(storage.claims()) == (4 if number else 2)
    # What is repeated waits for what the server has not yet given up of the dead.
    again = storage.exchange(list(zip(held, OUTCOMES, strict=True)), fetch=None, limit=0, retention=KEEP)
    assert [done.state for done in again.finished] == STATES


def test_no_two_workers_get_the_same_job(url: str, storage: Storage) -> None:
    ids = storage.enqueue_many(Job.new("work", n, priority=n % 3) for n in range(120))
    storage.close()

    def work(worker: str, limit: int) -> Callable[[], None]:
        def until_there_is_nothing() -> None:
            with closing(open_patiently(url)) as mine:
                held: tuple[Claim, ...] = ()
                while True:
                    outcomes = [(claim, replace(DONE, result=worker)) for claim in held]
                    done = mine.exchange(outcomes, fetch=fetch(worker=worker), limit=limit, retention=KEEP)
                    assert all(one.accepted for one in done.finished)
                    assert all(claim.worker_id == worker for claim in done.claims)
                    held = done.claims
                    if not held:
                        return

        return until_there_is_nothing

    statuses = in_children([work(f"worker-{limit}", limit) for limit in (1, 2, 3, 5)])

    assert statuses == [0] * 4
    jobs = [present(storage, job_id) for job_id in ids]
    assert {job.state_name for job in jobs} == {StateName.SUCCEEDED}
    assert {job.claim_seq for job in jobs} == {1}


def test_two_that_end_the_same_claims_do_not_wait_for_each_other_for_ever(url: str, storage: Storage) -> None:
    held = claim_some(storage, 30)
    storage.close()

    def end(claims: list[Claim]) -> Callable[[], None]:
        def end_them() -> None:
            with closing(open_patiently(url)) as mine:
                outcomes = [(claim, Failure(error=NO)) for claim in claims]
                mine.exchange(outcomes, fetch=None, limit=0, retention=KEEP)

        return end_them

    statuses = in_children([end(list(held)), end(list(reversed(held)))])

    assert statuses == [0, 0]
    assert set(states(storage, held)) == {StateName.FAILED}
    assert [len(storage.attempts(claim.job.id)) for claim in held] == [1] * 30


@pytest.fixture
def reset_failpoints() -> Iterator[None]:
    yield
    failpoints.arm("")


def interrupt() -> None:
    """For `before_query`: the storage is away from there on."""
    raise StorageUnavailable("no more")


def before_query(
    storage: Storage, number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """Act before the query of this number that the storage runs in a transaction; how many are left until
    then."""
    port: Any = sys.modules[type(storage._db).__module__]
    run = port._Transaction.run
    left = number

    def run_or_act(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            act()
        return run(*arguments)

    monkeypatch.setattr(port._Transaction, "run", run_or_act)
    return lambda: left
