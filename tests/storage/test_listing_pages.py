"""Tests of the storage: pages of a listing in both directions, bounded looks, and counts up to a number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure, Retry
from qml_mp.core.state import StateName
from qml_mp.errors import QmlError
from qml_mp.storage import listing
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.fresh_storage import fresh_url
from tests.storage.conftest import Raw, driver_connection, raw_tables
from tests.storage.helpers import DONE, HOUR, KEEP, claim_new, in_an_hour, job_in, open_patiently, present

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
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


@pytest.fixture(params=[False, True], ids=["sorted", "in groups"])
def grouped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few wait, they are read as if there were many."""
    if request.param:
        monkeypatch.setattr(listing, "_FEW_ENQUEUED", 0)


@pytest.mark.usefixtures("grouped")
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


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("among", [1, 4, 1000])
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


def test_a_page_is_after_a_place_or_before_it(storage: Storage, raw: Raw) -> None:
    add(raw, 3, state=StateName.SUCCEEDED)
    cursor = storage.list_jobs(JobFilter(), limit=1).next_cursor

    with pytest.raises(QmlError, match="pass one of the two"):
        storage.list_jobs(JobFilter(), after=cursor, before=cursor)


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


def test_kinds_counted_up_to_a_number_are_the_same_kinds(storage: Storage, raw: Raw) -> None:
    for line, number in ((1, 3), (2, 2), (3, 1)):
        for n in range(number):
            failed(storage, line, again=n == 1)
    raw.add_job(state="failed", finished_at=raw.instant(storage.now() - HOUR), last_error_type="Odd")

    whole = storage.failure_kinds()

    assert storage.failure_kinds(among=100) == whole
    assert [kind.count for kind in storage.failure_kinds(among=1)] == [3, 2, 1, 1]  # of each state one more
    assert [kind.newest.id for kind in storage.failure_kinds(among=1)] == [kind.newest.id for kind in whole]
    assert storage.failure_kinds(JobFilter(since=storage.now()), among=9) == []
    assert [
        kind.key for kind in storage.failure_kinds(JobFilter(until=storage.now() - HOUR / 2), among=9)
    ] == [None]
    only = [
        kind.count for kind in storage.failure_kinds(JobFilter(states=[StateName.AWAITING_RETRY]), among=9)
    ]
    assert only == [1, 1]
    assert storage.failure_kinds(JobFilter(method="none"), among=9) == []
    with pytest.raises(QmlError, match="method, since and until alone"):
        storage.failure_kinds(JobFilter(queue="q"), among=9)


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


def test_a_queue_with_many_methods_and_priorities_hides_no_other(storage: Storage, raw: Raw) -> None:
    """Whose oldest job may then be a younger one, and that is said."""
    last = Job.new("m100", queue="a", priority=0)
    storage.enqueue(last)
    raw.age("jobs", "enqueued_at", HOUR)
    others = [(f"m{n:03}", priority) for n in range(101) for priority in range(10)][:-10]
    storage.enqueue_many(Job.new(method, queue="a", priority=priority) for method, priority in others)
    storage.enqueue_many(Job.new("m100", queue="a", priority=1 + n) for n in range(9))
    storage.enqueue_many(Job.new("work", queue="z") for _ in range(7))
    storage.enqueue(Job.new("work", queue="b"))

    told = storage.queue_stats(among=100_000)

    assert [(each.name, each.enqueued) for each in told] == [("a", 1010), ("b", 1), ("z", 7)]
    assert [each.is_oldest_of_some for each in told] == [True, False, False]
    assert all(each.oldest is not None and each.oldest < HOUR for each in told)
    whole = storage.queue_stats()
    assert [(each.name, each.enqueued) for each in whole] == [("a", 1010), ("b", 1), ("z", 7)]
    assert whole[0].oldest is not None
    assert whole[0].oldest >= HOUR


@pytest.mark.parametrize(("retried", "is_found"), [(312, True), (1000, False)], ids=["some", "a thousand"])
def test_retried_jobs_that_stand_first_do_not_hide_one_that_waits_for_long(
    storage: Storage, raw: Raw, retried: int, is_found: bool
) -> None:
    """A queue has at most a thousand of them looked at, and where there may be more, that is said."""
    hour_ago, day_ago = storage.now() - HOUR, storage.now() - 24 * HOUR
    storage.enqueue(Job.new("work", now=hour_ago))
    raw.age("jobs", "enqueued_at", HOUR)
    storage.enqueue_many(Job.new("work", now=day_ago) for _ in range(retried))

    [queue] = storage.queue_stats(among=100_000)

    assert queue.oldest is not None
    assert (queue.oldest >= HOUR, queue.is_oldest_of_some) == (is_found, not is_found)


def test_a_retried_job_is_listed_where_it_was_created(storage: Storage) -> None:
    old = failed(storage, 1)
    new = failed(storage, 1)
    storage.retry(old)

    assert [job.id for job in storage.list_jobs(JobFilter(), among=5).jobs] == [new, old]
    assert present(storage, old).state_name is StateName.ENQUEUED
