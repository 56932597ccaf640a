"""Tests of the storage: which job a claim hands out, and to whom."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qml_mp.core.history import waited_us
from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Release
from qml_mp.core.state import Processing, StateName
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    fetch,
    finish_and_fetch,
    in_an_hour,
    in_children,
    open_patiently,
    present,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def claimed_ids(storage: Storage, *queues: str) -> list[str]:
    """Claim until nothing is left."""
    ids = []
    while claim := storage.fetch_and_lock_job(fetch(*queues)):
        ids.append(claim.job.id)
    return ids


def aged(minutes: int, *, queue: str = "default", priority: int = 0) -> Job:
    """A job enqueued so many minutes before noon."""
    return Job.new("work", queue=queue, priority=priority, now=NOON - timedelta(minutes=minutes))


def test_a_claim_is_processing_numbered_and_stamped_with_its_owner(storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("work", {"n": 1}))

    claim = storage.fetch_and_lock_job(fetch("default", worker="w-7", server="s#7"))

    assert claim is not None
    assert (claim.job.id, claim.job.claim_seq, claim.worker_id, claim.server_id) == (job_id, 1, "w-7", "s#7")
    assert isinstance(claim.job.state, Processing)
    assert (claim.job.state.worker_id, claim.job.state.server_name) == ("w-7", "s#7")
    assert claim.job.started_at == claim.job.state.started_at is not None
    assert claim.job == present(storage, claim)


def test_higher_priorities_come_first_and_then_older_jobs(storage: Storage) -> None:
    jobs = [
        aged(1, priority=1),
        aged(9),
        aged(5),
        aged(3, priority=5),
        aged(7, priority=5),
        aged(2, priority=-1),
    ]
    storage.enqueue_many(jobs)

    order = claimed_ids(storage, "default")

    assert order == [jobs[index].id for index in (4, 3, 0, 1, 2, 5)]


def test_the_order_holds_across_the_served_queues(storage: Storage) -> None:
    jobs = [aged(1, queue="a"), aged(4, queue="b"), aged(2, queue="c", priority=1), aged(3, queue="a")]
    storage.enqueue_many(jobs)

    order = claimed_ids(storage, "c", "b", "a")

    assert order == [jobs[index].id for index in (2, 1, 3, 0)]


def test_jobs_of_the_same_instant_come_in_the_order_of_their_ids(storage: Storage) -> None:
    jobs = [Job.new("work", now=NOON) for _ in range(10)]
    storage.enqueue_many(reversed(jobs))

    assert claimed_ids(storage, "default") == sorted(job.id for job in jobs)


def test_claims_keep_to_the_served_queues_exactly(storage: Storage) -> None:
    served = [storage.enqueue(Job.new("work", queue=queue)) for queue in ("mail", "Mail-2")]
    for other in ("mail2", "mai", "MAIL", "mail.x", "default"):
        storage.enqueue(Job.new("work", queue=other, priority=9))

    order = claimed_ids(storage, "mail", "Mail-2", "nobody")

    assert order == served
    assert storage.job_counts()[StateName.ENQUEUED] == 5


def test_a_job_behind_a_large_backlog_of_another_queue_is_found(storage: Storage) -> None:
    storage.enqueue_many(aged(60, queue="backlog", priority=9) for _ in range(3000))
    wanted = storage.enqueue(aged(1, queue="mine", priority=-9))

    assert claimed_ids(storage, "mine") == [wanted]
    assert claimed_ids(storage, "yours", "mine") == []


def test_scheduled_and_ended_jobs_are_not_claimed(storage: Storage) -> None:
    storage.enqueue(Job.new("work", at=in_an_hour()))
    storage.enqueue(Job.new("work"))
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None
    storage.finish(claim, DONE, retention=KEEP)

    assert claimed_ids(storage) == []


def test_eight_processes_claim_each_job_exactly_once(storage: Storage, url: str, tmp_path: Path) -> None:
    ids = storage.enqueue_many(Job.new("work", n, queue=f"q{n % 3}") for n in range(240))
    storage.close()

    def drain(number: int) -> None:
        mine = open_patiently(url)
        with open(tmp_path / f"claimed-{number}", "w") as log:
            claim = mine.fetch_and_lock_job(fetch("q0", "q1", "q2", worker=f"w-{number}"))
            while claim is not None:
                log.write(f"{claim.job.id}\n")
                then = fetch("q0", "q1", "q2", worker=f"w-{number}") if number % 2 else None
                finished, next_claim = finish_and_fetch(mine, claim, DONE, then)
                assert finished.accepted
                claim = next_claim if then else mine.fetch_and_lock_job(fetch(worker=f"w-{number}"))

    actions: list[Callable[[], None]] = [partial(drain, number) for number in range(8)]
    statuses = in_children(actions)

    assert statuses == [0] * 8
    claimed = [line for number in range(8) for line in (tmp_path / f"claimed-{number}").read_text().split()]
    assert sorted(claimed) == sorted(ids)
    assert storage.job_counts()[StateName.SUCCEEDED] == 240


# A worker is given jobs of the methods that it knows, and no others.

QUEUES = pytest.mark.parametrize("queues", [(), ("default", "other")], ids=["all queues", "several queues"])


@QUEUES
@pytest.mark.fault(90)
def test_only_known_methods_are_claimed_and_the_others_wait(
    storage: Storage, queues: tuple[str, ...]
) -> None:
    known = replace(fetch(*queues), methods=("one", "two"))
    foreign_ids = storage.enqueue_many(Job.new(method, priority=9) for method in ("a", "one!", "zebra"))
    two_id, one_id = storage.enqueue_many(
        [Job.new("two", priority=1, queue="default"), Job.new("one", queue="default")]
    )

    first = storage.fetch_and_lock_job(known)
    assert first is not None
    second = finish_and_fetch(storage, first, DONE, known)[1]
    assert second is not None
    _, last = finish_and_fetch(storage, second, DONE, known)

    assert [first.job.id, second.job.id] == [two_id, one_id]
    assert last is None
    assert storage.fetch_and_lock_job(known) is None
    assert {present(storage, job_id).state_name for job_id in foreign_ids} == {StateName.ENQUEUED}


@QUEUES
def test_who_knows_no_method_claims_nothing(storage: Storage, queues: tuple[str, ...]) -> None:
    storage.enqueue(Job.new("work"))

    assert storage.fetch_and_lock_job(replace(fetch(*queues), methods=())) is None
    assert storage.fetch_and_lock_job(fetch(*queues)) is not None


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@QUEUES
def test_what_others_are_just_taking_is_passed_over_whichever_method_it_has(
    storage: Storage, raw: Raw, connect: Callable[[], Any], queues: tuple[str, ...]
) -> None:
    storage.migrate()
    ids = storage.enqueue_many(
        Job.new(method, priority=9 - number) for number, method in enumerate(("a", "b", "a", "c"))
    )
    with connect() as other:
        other.execute(f"SELECT FROM {raw.name('jobs')} WHERE id = ANY(%s) FOR UPDATE", [ids[:1]])
        beside_one = storage.fetch_and_lock_job(fetch(*queues))
        other.execute(f"SELECT FROM {raw.name('jobs')} WHERE method = 'a' FOR UPDATE")
        beside_all = storage.fetch_and_lock_job(fetch(*queues))

    assert beside_one is not None
    assert beside_one.job.id == ids[2]
    assert beside_all is not None
    assert beside_all.job.id == ids[1]


# A job that was claimed and given back before it began has waited all the time.

NOT_BEGUN = Release(reason="not begun", not_begun=True)


@pytest.fixture
def held(storage: Storage, raw: Raw) -> Sequence[Claim]:
    """Three jobs, claimed together after they have waited for an hour; a fourth waits."""
    storage.enqueue_many(Job.new("work", queue="default") for _ in range(4))
    raw.age("jobs", "enqueued_at", HOUR)
    return storage.exchange((), fetch=fetch(), limit=3, retention=KEEP).claims


def oldest(storage: Storage) -> timedelta:
    """As `queues list` and the metrics show it."""
    [queue] = storage.queue_stats(among=1000)
    assert queue.oldest is not None
    return queue.oldest


def waits(storage: Storage, count: int) -> list[bool]:
    """Of so many of the next jobs, whether each is known to have waited for the hour."""
    claims = storage.exchange((), fetch=fetch(worker="next"), limit=count, retention=KEEP).claims
    hour_us = HOUR // timedelta(microseconds=1)
    return [waited_us(claim.job) >= hour_us for claim in claims]


def test_what_was_not_begun_waits_since_it_was_enqueued(storage: Storage, held: Sequence[Claim]) -> None:
    done = storage.exchange([(each, NOT_BEGUN) for each in held], fetch=None, limit=0, retention=KEEP)

    assert [each.job for each in done.finished] == [present(storage, each) for each in held]
    assert oldest(storage) >= HOUR
    assert waits(storage, 4) == [True] * 4


def test_what_had_begun_waits_anew(storage: Storage, held: Sequence[Claim]) -> None:
    for each in held:
        storage.finish(each, Release(reason="the server stopped"), retention=KEEP)

    assert waits(storage, 4) == [False, False, False, True]


def test_of_what_a_server_that_is_gone_had_claimed_the_first_alone_may_have_begun(
    storage: Storage, held: Sequence[Claim]
) -> None:
    assert storage.reclaim_server("server#1", silent_for=None, retention=KEEP) == 3

    assert waits(storage, 4) == [False, True, True, True]
