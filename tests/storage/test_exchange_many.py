"""Tests of the storage: many outcomes written and many jobs claimed in one exchange."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.limits import LimitKind
from qml_mp.core.outcome import Failure, Outcome, Release, Retry
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import StateName
from qml_mp.errors import OutcomeRefused, StorageUnavailable
from qml_mp.storage import streaks
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, Finished
from tests import failpoints
from tests.storage.claimer import FETCH, register
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, fetch, in_children, open_patiently, present, set_limit
from tests.storage.test_exchange import TOO_LARGE, claim_some, states
from tests.storage.test_refusals import full

MANY = 100
FETCHES = pytest.mark.parametrize(
    "which", [fetch(), fetch("a"), fetch("b", "a")], ids=["all queues", "one queue", "several queues"]
)
SUCCEEDED = Finished(accepted=True, state=StateName.SUCCEEDED)
LOST = Finished(accepted=False, state=None)


@FETCHES
@pytest.mark.parametrize("seed", range(3))
def test_the_best_of_several_methods_are_claimed_in_order(storage: Storage, which: Fetch, seed: int) -> None:
    rng = Random(seed)
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


@pytest.mark.parametrize("number", [MANY, 33, 4])
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


@pytest.mark.fault(81)
def test_one_refused_of_many_is_named_and_none_is_written(storage: Storage) -> None:
    held = claim_some(storage, MANY)
    outcomes = [(claim, TOO_LARGE if claim is held[60] else DONE) for claim in held]

    with pytest.raises(OutcomeRefused) as caught:
        storage.exchange(outcomes, fetch=fetch(), limit=MANY, retention=KEEP)

    assert caught.value.job_id == held[60].job.id
    assert set(states(storage, held)) == {StateName.PROCESSING}


@pytest.mark.fault(81)
@FETCHES
def test_jobs_amid_many_that_cannot_be_claimed_are_failed_and_the_others_claimed(
    storage: Storage, raw: Raw, which: Fetch
) -> None:
    ids = storage.enqueue_many(Job.new("work", n, queue="a") for n in range(30))
    bad = [raw.add_job(claim_seq=full(raw), queue="a", method=method) for method in ("work", "other", "work")]

    claims = storage.exchange((), fetch=which, limit=50, retention=KEEP).claims

    assert [claim.job.id for claim in claims] == ids
    assert [present(storage, job_id).state_name for job_id in bad] == [StateName.FAILED] * 3


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


@pytest.mark.parametrize("seed", range(4))
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


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A worker that has looked does not look again before this is called, once."""
    monkeypatch.setattr(streaks, "_LOOK_EVERY_S", 1000.0)
    now, early = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now() + early[0])

    def look() -> None:
        early[0] += 1000.0

    return look


def next_ones(storage: Storage, held: tuple[Claim, ...], which: Fetch, limit: int = 10) -> tuple[Claim, ...]:
    done = storage.exchange([(claim, DONE) for claim in held], fetch=which, limit=limit, retention=KEEP)
    assert all(finished.accepted for finished in done.finished)
    return done.claims


def test_batches_of_one_kind_follow_each_other_until_the_next_look(
    storage: Storage, raw: Raw, looks: Callable[[], None]
) -> None:
    which = fetch()
    ids = storage.enqueue_many(Job.new("work", n) for n in range(40))
    first = next_ones(storage, claim_some_more(storage, which, 5), which)
    better_id = storage.enqueue(Job.new("work", priority=1))

    second = next_ones(storage, first, which)
    looks()
    third = next_ones(storage, second, which)

    assert [claim.job.id for claim in (*first, *second)] == ids[5:25] or raw.is_sqlite  # which always looks
    assert better_id in [claim.job.id for claim in (*second, *third)]
    assert third[0].job.id == (ids[24] if raw.is_sqlite else better_id)


def test_where_nothing_is_behind_a_worker_looks_at_once(storage: Storage, looks: Callable[[], None]) -> None:
    which = fetch()
    storage.enqueue_many(Job.new("work", n) for n in range(15))
    held = claim_some_more(storage, which, 5)
    last = next_ones(storage, held, which)
    storage.finish(last[3], Release(reason="older than the last"), retention=KEEP)

    found = next_ones(storage, (*last[:3], *last[4:]), which)

    assert [claim.job.id for claim in found] == [last[3].job.id]
    assert next_ones(storage, found, which) == ()


@FETCHES
def test_where_several_kinds_wait_each_batch_is_the_best(
    storage: Storage, looks: Callable[[], None], which: Fetch
) -> None:
    jobs = [Job.new("one" if n % 3 else "two", n, queue="a", priority=n // 60) for n in range(120)]
    storage.enqueue_many(jobs)
    held, claimed = claim_some_more(storage, which, 5), []

    while held:
        claimed += [claim.job.id for claim in held]
        held = next_ones(storage, held, which)

    assert claimed == [job.id for job in (*jobs[60:], *jobs[:60])]


def test_where_one_method_waits_in_several_queues_each_batch_is_the_best_of_all(
    storage: Storage, looks: Callable[[], None]
) -> None:
    which = fetch()
    jobs = [Job.new("one", n, queue="ab"[n % 2]) for n in range(60)]
    storage.enqueue_many(jobs)
    held, claimed = claim_some_more(storage, which, 5), []

    while held:
        claimed += [claim.job.id for claim in held]
        held = next_ones(storage, held, which)

    assert claimed == [job.id for job in jobs]


@pytest.mark.fault(81)
def test_a_job_in_a_streak_of_one_kind_that_cannot_be_claimed_is_failed(
    storage: Storage, raw: Raw, looks: Callable[[], None]
) -> None:
    which = fetch()
    storage.enqueue_many(Job.new("work", n) for n in range(20))
    first = next_ones(storage, claim_some_more(storage, which, 5), which)
    bad_id = raw.add_job(claim_seq=full(raw))
    last_id = storage.enqueue(Job.new("work"))

    second = next_ones(storage, first, which)

    assert [claim.job.id for claim in second][-1] == last_id
    assert len(second) == 6
    assert present(storage, bad_id).state_name is StateName.FAILED


def claim_some_more(storage: Storage, which: Fetch, number: int) -> tuple[Claim, ...]:
    """Of the jobs that are there."""
    return storage.exchange((), fetch=which, limit=number, retention=KEEP).claims


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


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_what_others_are_taking_keeps_nobody_from_what_has_a_limit(
    storage: Storage, raw: Raw, connect: Callable[[], Any]
) -> None:
    set_limit(storage, LimitKind.METHOD, "other", max_running=5)
    storage.enqueue_many(Job.new("best", priority=9) for _ in range(60))
    free = storage.enqueue_many(Job.new("other") for _ in range(5))
    other = connect()
    other.execute(f"SELECT id FROM {raw.name('jobs')} WHERE method = 'best' FOR UPDATE")

    claimed = storage.exchange((), fetch=fetch(), limit=50, retention=KEEP).claims
    other.rollback()

    assert [claim.job.id for claim in claimed] == free[:1]


@pytest.fixture
def reset_failpoints() -> Iterator[None]:
    yield
    failpoints.arm("")
