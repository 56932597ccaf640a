"""Tests of the storage: listings, pages, counts, kinds of failures, and what is left to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure, Retry
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.errors import QmlError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter, JobPage, LaterWork
from tests.fresh_storage import fresh_url
from tests.storage.conftest import Raw, driver_connection, raw_tables
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    NO,
    claim_new,
    fetch,
    in_an_hour,
    job_in,
    open_patiently,
    present,
)

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


# Pages of a listing in both directions, bounded looks, and counts up to a number.
STATES: list[list[StateName]] = [[], [StateName.SUCCEEDED], [StateName.ENQUEUED], [StateName.SCHEDULED]]
NAMES = ["all", "succeeded", "enqueued", "scheduled"]
_ENDED = (StateName.SUCCEEDED, StateName.FAILED, StateName.DELETED)


def add(raw: Raw, number: int, *, state: StateName, **columns: Any) -> list[str]:
    """So many, a second apart; ids newest first."""
    ids = []
    for n in range(number):
        at = raw.instant(NOON + timedelta(seconds=n))
        ends = {"finished_at": at, "expires_at": raw.instant(NOON + HOUR)} if state in _ENDED else {}
        waits = {"run_at": raw.instant(NOON + HOUR)} if state is StateName.SCHEDULED else {}
        values = {"method": f"m{n % 3}", "queue": f"q{n % 2}", "priority": n % 2, **columns}
        ids.append(raw.add_job(state=str(state), created_at=at, enqueued_at=at, **values, **ends, **waits))
    return ids[::-1]


def walk(storage: Storage, where: JobFilter, **options: Any) -> list[list[str]]:
    """All pages, from the newest on."""
    pages = []
    page = storage.list_jobs(where, **options)
    while True:
        pages.append([job.id for job in page.jobs])
        if page.next_cursor is None:
            return pages
        page = storage.list_jobs(where, after=page.next_cursor, **options)


@pytest.mark.parametrize("states", STATES, ids=NAMES)
def test_pages_go_back_the_way_they_came(storage: Storage, raw: Raw, states: list[StateName]) -> None:
    for state in states or (StateName.SUCCEEDED, StateName.ENQUEUED):
        add(raw, 7, state=state)
    where = JobFilter(states=states)
    there = []
    page = storage.list_jobs(where, limit=3)
    assert page.previous_cursor is None
    while page.next_cursor is not None:
        there.append(page)
        page = storage.list_jobs(where, limit=3, after=page.next_cursor)

    back = []
    while page.previous_cursor is not None:
        page = storage.list_jobs(where, limit=3, before=page.previous_cursor)
        back.append(page)

    assert [page.jobs for page in back] == [page.jobs for page in there][::-1]
    assert [page.next_cursor for page in back] == [page.next_cursor for page in there][::-1]


@pytest.fixture(scope="module", params=STATES, ids=NAMES)
def listed_states(request: pytest.FixtureRequest) -> list[StateName]:
    """What the jobs are of that many tests list; no states: of each."""
    states: list[StateName] = request.param
    return states


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def listed_url(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    listed_states: list[StateName],
) -> Iterator[str]:
    """Where they are: a storage for each choice of states, made once for all tests that only look at it."""
    for url in fresh_url(request, tmp_path_factory):
        with closing(open_patiently(url)) as storage:
            storage.migrate()
        with closing(raw_tables(url, partial(driver_connection, url))) as raw:
            for state in listed_states or StateName:
                add(raw, 8, state=state)
                add(raw, 2, state=state, last_error_type="SomeError", last_error_message="")
        yield url


@pytest.fixture
def listed(listed_url: str) -> Iterator[Storage]:
    with closing(open_patiently(listed_url)) as storage:
        yield storage


@pytest.mark.parametrize("among", [1, 4])
@pytest.mark.parametrize(
    "wanted",
    [{}, {"method": "m1"}, {"queue": "q1", "method": "m0"}, {"error": "SOME"}, {"since": NOON}],
    ids=["any", "method", "queue and method", "error", "since"],
)
def test_a_bounded_look_finds_in_the_end_what_an_unbounded_one_finds(
    listed: Storage, listed_states: list[StateName], wanted: dict[str, Any], among: int
) -> None:
    where = JobFilter(states=listed_states, **wanted)

    whole = walk(listed, where, limit=1000)
    bounded = walk(listed, where, limit=3, among=among)

    assert len(whole) == 1
    assert [job_id for page in bounded for job_id in page] == whole[0]


def test_a_bounded_look_says_how_far_it_went(storage: Storage, raw: Raw) -> None:
    add(raw, 30, state=StateName.SUCCEEDED, method="often")
    rare = raw.add_job(
        state="succeeded", method="rare", created_at=raw.instant(NOON - HOUR), finished_at=raw.instant(NOON)
    )
    where = JobFilter(method="rare")

    first = storage.list_jobs(where, limit=5, among=20)
    second = storage.list_jobs(where, limit=5, among=20, after=first.next_cursor)

    assert (first.jobs, first.looked_to) == ((), NOON + timedelta(seconds=10))
    assert [job.id for job in second.jobs] == [rare]
    assert (second.next_cursor, second.looked_to) == (None, None)


def test_a_listing_can_end_at_an_instant(storage: Storage, raw: Raw) -> None:
    ids = add(raw, 5, state=StateName.FAILED)

    listed = storage.list_jobs(
        JobFilter(since=NOON + timedelta(seconds=1), until=NOON + timedelta(seconds=3))
    )

    assert [job.id for job in listed.jobs] == ids[1:4]


def test_brief_jobs_come_without_what_is_long(storage: Storage) -> None:
    long, short = Job.new("work", "x" * 5000, metadata={"why": "y" * 5000}), Job.new("work", "x")
    storage.enqueue_many([long, short])
    failed = claim_new(storage)
    storage.finish(failed, Failure(error=ErrorInfo(type="E", message="m", traceback="t")), retention=KEEP)

    page = storage.list_jobs(JobFilter(), brief=True)

    told = {job.id: job for job in page.jobs}
    assert page.cut == {long.id}
    assert (told[long.id].payload, told[long.id].metadata) == (None, {})
    assert told[short.id].payload == "x"
    assert told[failed.job.id].last_error == ErrorInfo(type="E", message="m", traceback=None)


def test_a_job_is_found_by_the_beginning_of_its_id(storage: Storage) -> None:
    ids = sorted(storage.enqueue_many(Job.new("work") for _ in range(3)), reverse=True)

    assert [job.id for job in storage.jobs_with_id(ids[0][:8])] == ids
    assert [job.id for job in storage.jobs_with_id(f" {ids[1].replace('-', '').upper()} ")] == [ids[1]]
    assert [job.id for job in storage.jobs_with_id(ids[2][:30])] in ([ids[2]], ids)
    assert len(storage.jobs_with_id(ids[0][:4], limit=2)) == 2
    for text in ("", "-", "%", "nothing", "0" * 40, ids[0] + "0"):
        assert storage.jobs_with_id(text) == ()


def failed(storage: Storage, line: int, *, again: bool = False) -> str:
    claim = claim_new(storage)
    why = ErrorInfo(type="E", message="no", traceback=f'  File "tasks.py", line {line}, in f\n')
    storage.finish(claim, Retry(error=why, delay=HOUR) if again else Failure(error=why), retention=KEEP)
    return claim.job.id


@pytest.mark.parametrize("among", [None, 1, 100])
def test_jobs_of_a_kind_are_listed_and_counted(storage: Storage, among: int | None) -> None:
    mine = [failed(storage, 1), failed(storage, 1, again=True), failed(storage, 1)]
    failed(storage, 2)
    storage.finish(claim_new(storage), DONE, retention=KEEP)
    kind = storage.failure_kinds()[0].key
    where = JobFilter(kind=kind)

    assert kind is not None
    pages = walk(storage, where, limit=2, among=among)
    assert [job_id for page in pages for job_id in page] == mine[::-1]
    assert storage.count_jobs(where, until=storage.now()) == {
        StateName.FAILED: 2, StateName.AWAITING_RETRY: 1,
    }  # fmt: skip
    assert set(storage.job_ids(where, until=storage.now()).ids) == set(mine)
    assert storage.list_jobs(JobFilter(kind=kind, states=[StateName.ENQUEUED])).jobs == ()
    assert storage.count_jobs(JobFilter(kind=kind, states=[StateName.ENQUEUED]), until=storage.now()) == {}


def test_states_are_counted_up_to_a_number(storage: Storage) -> None:
    for state in StateName:
        job_in(storage, state)
    for _ in range(3):
        job_in(storage, StateName.FAILED)

    assert storage.job_counts(among=100) == storage.job_counts()
    assert storage.job_counts(among=2) == storage.job_counts() | {StateName.FAILED: 3}


def test_queues_are_counted_up_to_a_number(storage: Storage, raw: Raw) -> None:
    for queue, number in (("a", 1), ("b", 4)):
        storage.enqueue_many(Job.new(f"m{n}", queue=queue, priority=n) for n in range(number))
    storage.enqueue(Job.new("work", queue="c", at=in_an_hour()))
    job_in(storage, StateName.PROCESSING)
    raw.age("jobs", "enqueued_at", HOUR)

    told = storage.queue_stats(among=2)

    whole = storage.queue_stats()
    assert [(each.name, each.processing, each.held) for each in told] == [
        (each.name, each.processing, each.held) for each in whole
    ]
    assert {each.name: each.enqueued for each in told} == {each.name: min(each.enqueued, 3) for each in whole}
    assert all((each.oldest is None) == (same.oldest is None) for each, same in zip(told, whole, strict=True))
    assert all(each.oldest >= HOUR for each in told if each.oldest is not None)


def test_a_retried_job_is_listed_where_it_was_created(storage: Storage) -> None:
    old = failed(storage, 1)
    new = failed(storage, 1)
    storage.retry(old)

    assert [job.id for job in storage.list_jobs(JobFilter(), among=5).jobs] == [new, old]
    assert present(storage, old).state_name is StateName.ENQUEUED


# Failures counted by kind.


def error(line: int = 1, *, type: str = "ValueError", message: str = "no") -> ErrorInfo:
    return ErrorInfo(type=type, message=message, traceback=f'  File "tasks.py", line {line}, in thumb\n')


def failed_for(storage: Storage, why: ErrorInfo, *, again: bool = False, **options: Any) -> str:
    claim = claim_new(storage, **options)
    storage.finish(claim, Retry(error=why, delay=HOUR) if again else Failure(error=why), retention=KEEP)
    return claim.job.id


def test_failures_are_counted_by_method_type_and_line(storage: Storage) -> None:
    failed_for(storage, error(1, message="a"))
    newest = failed_for(storage, error(1, message="b"), again=True)
    others = [failed_for(storage, error(2)), failed_for(storage, error(1, type="KeyError"))]
    storage.finish(claim_new(storage), DONE, retention=KEEP)

    first, *rest = storage.failure_kinds()

    assert (first.count, first.newest.id) == (2, newest)
    assert first.newest.last_error == error(1, message="b")
    assert first.last_at >= first.newest.created_at
    assert [kind.newest.id for kind in rest] == others[::-1]  # the newer one first
    assert [kind.count for kind in rest] == [1, 1]
    assert len(storage.failure_kinds(limit=2)) == 2


def test_the_newest_kinds_are_given_where_there_are_too_many(storage: Storage) -> None:
    for line in (1, 1, 2, 2):
        failed_for(storage, error(line))
    newest = failed_for(storage, error(3))

    most = storage.failure_kinds(limit=2)
    last = storage.failure_kinds(limit=2, newest_first=True)

    assert [kind.count for kind in most] == [2, 2]
    assert [kind.newest.id for kind in last] == [newest, most[0].newest.id]
    assert storage.failure_kinds(limit=2, among=9) == most
    assert storage.failure_kinds(limit=2, among=9, newest_first=True) == last


def test_kinds_can_be_limited_as_a_listing(storage: Storage) -> None:
    final, waiting = failed_for(storage, error(1)), failed_for(storage, error(1), again=True)

    def newest(**filters: Any) -> list[str]:
        return [kind.newest.id for kind in storage.failure_kinds(JobFilter(**filters))]

    assert newest(states=[StateName.FAILED]) == [final]
    assert newest(states=[StateName.AWAITING_RETRY, StateName.SUCCEEDED]) == [waiting]
    assert newest(states=[StateName.SUCCEEDED]) == []
    assert newest(queue=present(storage, final).queue) == [final]
    assert newest(method="none") == []
    assert newest(since=storage.now()) == []


# The newest jobs of recurring templates, of many at a time.


def test_each_template_has_its_newest_jobs_the_newest_first(storage: Storage) -> None:
    hourly = RecurringJob.new(
        "hourly", "0 * * * *", "work", misfire="catch_up(4)", now=datetime.now(UTC) - timedelta(hours=6)
    )
    storage.upsert_recurring_job(hourly)
    storage.upsert_recurring_job(RecurringJob.new("rare", "0 0 1 1 *", "work"))
    fired = storage.fire_due_recurring().jobs
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None
    storage.finish(claim, Failure(error=NO), retention=KEEP)
    by_hand = [storage.run_recurring_now("hourly"), storage.run_recurring_now("rare")]

    found = storage.newest_jobs_of(["hourly", "rare", "none"], limit=3)

    assert [job.job_id for job in found["hourly"]] == [by_hand[0], fired[3].id, fired[2].id]
    assert found["hourly"][0].fire_at is None
    assert [job.fire_at for job in found["hourly"][1:]] == [
        datetime.fromisoformat(str(job.metadata["fire_at"])) for job in (fired[3], fired[2])
    ]
    assert [job.job_id for job in found["rare"]] == [by_hand[1]]
    assert found["none"] == []
    (oldest,) = (job for job in storage.newest_jobs_of(["hourly"], limit=9)["hourly"] if job.error)
    assert (oldest.job_id, oldest.state) == (claim.job.id, StateName.FAILED)
    assert oldest.error == f"{NO.type}: {NO.message}"
    assert oldest.finished_at is not None
