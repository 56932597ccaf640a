"""Tests of the storage: listings, counts and what is left to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import QmlError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter, JobPage, LaterWork
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, claim_new, fetch, in_an_hour, job_in

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def all_pages(storage: Storage, where: JobFilter, *, limit: int) -> list[list[str]]:
    pages = []
    page = storage.list_jobs(where, limit=limit)
    while True:
        pages.append([job.id for job in page.jobs])
        if page.next_cursor is None:
            return pages
        page = storage.list_jobs(where, limit=limit, after=page.next_cursor)


def test_an_empty_storage_lists_nothing(storage: Storage) -> None:
    assert storage.list_jobs(JobFilter()) == JobPage(jobs=(), next_cursor=None)
    assert storage.queue_stats() == []
    assert storage.job_counts() == dict.fromkeys(StateName, 0)
    assert storage.due_count([]) == 0
    assert not storage.has_due_work([])
    assert storage.attempts("no id") == ()


def test_pages_are_newest_first_and_show_each_job_once(storage: Storage) -> None:
    jobs = [Job.new("work", now=NOON + timedelta(seconds=n // 3)) for n in range(10)]
    storage.enqueue_many(jobs)
    newest_first = [job.id for job in sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)]

    pages = all_pages(storage, JobFilter(), limit=4)

    assert [len(page) for page in pages] == [4, 4, 2]
    assert [job_id for page in pages for job_id in page] == newest_first
    assert all_pages(storage, JobFilter(), limit=5) == [newest_first[:5], newest_first[5:]]


def test_a_job_that_is_added_between_two_pages_shifts_nothing(storage: Storage) -> None:
    jobs = [Job.new("work", now=NOON + timedelta(seconds=n)) for n in range(4)]
    storage.enqueue_many(jobs)
    first = storage.list_jobs(JobFilter(), limit=2)

    storage.enqueue(Job.new("work", now=NOON + timedelta(seconds=9)))
    second = storage.list_jobs(JobFilter(), limit=2, after=first.next_cursor)

    assert [job.id for job in second.jobs] == [jobs[1].id, jobs[0].id]


def test_listings_mix_states_in_order_of_creation(storage: Storage) -> None:
    claims = [job_in(storage, state) for state in StateName]

    listed = storage.list_jobs(JobFilter())

    assert [job.id for job in listed.jobs] == [
        job.id for job in sorted((claim.job for claim in claims), key=lambda j: (j.created_at, j.id))
    ][::-1]
    assert {job.state_name for job in listed.jobs} == set(StateName)


@pytest.mark.parametrize("state", StateName)
def test_a_listing_can_be_limited_to_states(storage: Storage, state: StateName) -> None:
    claims = {each: job_in(storage, each) for each in StateName}

    one = storage.list_jobs(JobFilter(states=[state]))
    two = storage.list_jobs(JobFilter(states={state, StateName.FAILED}))

    assert [job.id for job in one.jobs] == [claims[state].job.id]
    assert {job.state_name for job in two.jobs} == {state, StateName.FAILED}


def test_a_listing_can_be_limited_to_a_queue_and_a_method(storage: Storage) -> None:
    wanted = [storage.enqueue(Job.new("a", queue="x", now=NOON + timedelta(seconds=n))) for n in range(3)]
    storage.enqueue(Job.new("a", queue="y"))
    storage.enqueue(Job.new("b", queue="x"))

    pages = all_pages(storage, JobFilter(queue="x", method="a"), limit=2)

    assert pages == [[wanted[2], wanted[1]], [wanted[0]]]
    assert len(storage.list_jobs(JobFilter(queue="x")).jobs) == 4
    assert storage.list_jobs(JobFilter(queue="z")).jobs == ()


def test_a_place_that_no_page_gave_is_refused(storage: Storage) -> None:
    with pytest.raises(QmlError):
        storage.list_jobs(JobFilter(), after="nonsense")


def test_counts_name_all_seven_states(storage: Storage) -> None:
    for state in (StateName.FAILED, StateName.FAILED, StateName.SCHEDULED, StateName.PROCESSING):
        job_in(storage, state)

    assert storage.job_counts() == dict.fromkeys(StateName, 0) | {
        StateName.FAILED: 2,
        StateName.SCHEDULED: 1,
        StateName.PROCESSING: 1,
    }


def test_queues_are_those_with_jobs_that_have_not_ended(storage: Storage, raw: Raw) -> None:
    storage.enqueue_many(Job.new("work", queue=queue) for queue in ("b", "b", "b", "a"))
    storage.fetch_and_lock_job(fetch("b"))
    storage.enqueue(Job.new("work", queue="c", at=in_an_hour()))
    job_in(storage, StateName.SUCCEEDED)
    for column in ("created_at", "enqueued_at"):
        raw.age("jobs", column, HOUR)

    stats = storage.queue_stats()

    assert [(queue.name, queue.enqueued, queue.processing) for queue in stats] == [
        ("a", 1, 0),
        ("b", 2, 1),
        ("c", 0, 0),
    ]
    assert stats[2].oldest is None
    assert all(queue.oldest is not None and queue.oldest >= HOUR for queue in stats[:2])


def test_what_a_worker_holds_beside_the_job_that_it_runs_is_told_apart(storage: Storage) -> None:
    for queue, priority in (("a", 1), ("b", 2), ("b", 0), ("a", 0), ("a", 0)):
        storage.enqueue(Job.new("work", queue=queue, priority=priority))
    for worker, limit in (("w-1", 3), ("w-2", 1), ("w-3", 1)):
        storage.exchange((), fetch=fetch(worker=worker), limit=limit, retention=KEEP)

    stats = storage.queue_stats()

    assert [(queue.name, queue.processing, queue.held) for queue in stats] == [("a", 3, 1), ("b", 2, 1)]


def test_due_work_is_what_can_still_run_in_the_queues(storage: Storage, raw: Raw) -> None:
    storage.enqueue(Job.new("work", queue="a"))
    storage.enqueue(Job.new("work", queue="b"))
    held = claim_new(storage).job.queue
    storage.enqueue(Job.new("work", queue="a", at=in_an_hour()))
    raw.age("jobs", "run_at", 2 * HOUR)
    storage.enqueue(Job.new("work", queue="a", at=in_an_hour()))
    failed = job_in(storage, StateName.FAILED).job.queue

    assert [storage.due_count(queues) for queues in (["a"], ["b", "c"], [])] == [1, 0, 1]
    assert all(storage.has_due_work(queues, with_waiting=False) for queues in (["a"], ["b", "c"], [held], []))
    assert not storage.has_due_work(["c", failed])


def test_due_work_of_one_server_is_what_it_knows_and_what_it_runs_itself(storage: Storage, raw: Raw) -> None:
    for method in ("known", "unknown"):
        storage.enqueue(Job.new(method, queue="a"))
        storage.enqueue(Job.new(method, queue="a", at=in_an_hour()))
    raw.age("jobs", "run_at", 2 * HOUR)
    claim_new(storage, server="mine#1")
    claim_new(storage, server="others#1")

    assert [storage.due_count([], methods=methods) for methods in (["known"], [], None)] == [1, 0, 2]
    assert [
        storage.has_due_work([], methods=[], server_id=server) for server in ("mine#1", "another#1", None)
    ] == [True, False, True]
    assert not storage.has_due_work(["a"], methods=[], server_id="mine#1")


@pytest.mark.parametrize("queues", [["a"], ["a", "b"], []], ids=["one queue", "two queues", "all queues"])
def test_whether_there_is_due_work_is_known_without_counting(
    storage: Storage, raw: Raw, queues: list[str]
) -> None:
    def found() -> tuple[bool, bool]:
        which: dict[str, Any] = {"queues": queues, "methods": ["known"], "server_id": "mine#1"}
        either, runnable = storage.has_due_work(**which), storage.has_due_work(**which, with_waiting=False)
        assert either == (runnable or storage.due_count(queues, methods=["known"]) > 0)
        return runnable, either

    storage.enqueue(Job.new("unknown", queue="a"))
    storage.enqueue(Job.new("known", queue="paused"))
    storage.set_paused("paused", True)
    storage.enqueue(Job.new("known", queue="a", at=in_an_hour()))
    claim_new(storage, server="others#1")
    assert found() == (False, False)

    raw.age("jobs", "run_at", 2 * HOUR)
    assert found() == (False, True)
    storage.promote_due(limit=1)
    assert found() == (True, True)
    storage.exchange((), fetch=fetch("a", server="mine#1"), limit=2, retention=KEEP)
    assert found() == (True, True)
    claims = [claim for claim in storage.claims() if claim.server_id == "mine#1"]
    storage.exchange([(claim, DONE) for claim in claims], fetch=None, limit=0, retention=KEEP)
    assert found() == (False, False)


def test_later_work_is_what_will_be_due_in_the_queues(storage: Storage, raw: Raw) -> None:
    nothing = storage.later_work([])
    storage.enqueue(Job.new("work", queue="a", at=in_an_hour()))
    raw.age("jobs", "run_at", 2 * HOUR)
    for hours in (2, 1):
        storage.enqueue(Job.new("work", queue="a", at=in_an_hour() + hours * HOUR))
    storage.enqueue(Job.new("work", queue="b", at=in_an_hour()))
    storage.enqueue(Job.new("work", queue="a"))

    later = storage.later_work(["a"])

    assert nothing == LaterWork(count=0, next_due_in=None)
    assert later.count == 2
    assert later.next_due_in is not None
    assert HOUR < later.next_due_in <= 2 * HOUR
    assert storage.later_work([]).count == 3
    assert [storage.later_work([], within=hours * HOUR).count for hours in (0, 1, 2, 3)] == [0, 1, 2, 3]
    storage.set_paused("a", True)
    assert (storage.later_work([], paused=False).count, storage.later_work([]).count) == (1, 3)


def test_method_statistics_count_what_is_enqueued_by_queue_and_method(storage: Storage) -> None:
    for queue, method, jobs in (("b", "two", 1), ("a", "two", 2), ("a", "one", 1), ("c", "one", 1)):
        storage.enqueue_many(Job.new(method, queue=queue) for _ in range(jobs))
    storage.enqueue(Job.new("later", queue="a", at=in_an_hour()))
    claim_new(storage)

    told = [
        [(line.queue, line.method, line.enqueued) for line in storage.method_stats(queues)]
        for queues in ([], ["c", "a"], ["none"])
    ]

    assert told == [
        [("a", "one", 1), ("a", "two", 2), ("b", "two", 1), ("c", "one", 1)],
        [("a", "one", 1), ("a", "two", 2), ("c", "one", 1)],
        [],
    ]


def test_method_statistics_up_to_a_number_name_every_method(storage: Storage, raw: Raw) -> None:
    for queue, method, jobs in (("a", "many", 5), ("a", "one", 1), ("b", "many", 2), ("b", "x" * 300, 4)):
        for _ in range(jobs):
            raw.add_job(queue=queue, method=method)

    told = [
        [(line.queue, line.method[:4], line.enqueued) for line in storage.method_stats(queues, among=3)]
        for queues in ([], ["b"])
    ]

    assert told[0] == [("a", "many", 3), ("a", "one", 1), ("b", "many", 2), ("b", "xxxx", 3)]
    assert told[1] == told[0][2:]
