"""Tests of the storage: unique keys, and jobs that replace the one that has the key."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from itertools import count, product
from typing import Any

import pytest

from qml_mp import QmlApp, ServerConfig
from qml_mp.core.job import Job
from qml_mp.core.state import Deleted, StateName
from qml_mp.errors import InvalidJob, StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    before_query,
    fetch,
    in_children,
    interrupt,
    open_patiently,
    present,
)

REPLACE: dict[str, Any] = {"unique_key": "k", "on_conflict": "replace"}


def job(**options: Any) -> Job:
    return Job.new("work", **{"unique_key": "k", **options})


def kept_for(ended: Job) -> timedelta:
    assert isinstance(ended.state, Deleted)
    assert ended.expires_at is not None
    return ended.expires_at - ended.state.deleted_at


def end_the_next(storage: Storage) -> None:
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None
    storage.finish(claim, DONE, retention=KEEP)


@pytest.mark.parametrize("many", [False, True])
def test_a_key_is_held_for_its_period_also_when_the_job_has_ended(
    storage: Storage, raw: Raw, many: bool
) -> None:
    def enqueue(new: Job) -> str:
        return storage.enqueue_many([new])[0] if many else storage.enqueue(new)

    first = enqueue(job(unique_for=HOUR))
    assert enqueue(job(unique_for=HOUR)) == first
    end_the_next(storage)

    assert enqueue(job(unique_for=HOUR)) == first
    raw.age("locks", "expires_at", 2 * HOUR)
    later = job(unique_for=HOUR)
    assert enqueue(later) == later.id
    assert storage.job_counts()[StateName.ENQUEUED] == 1


def test_a_job_that_was_not_written_holds_no_key(storage: Storage) -> None:
    first = storage.enqueue(job())
    assert storage.enqueue(job(unique_for=HOUR)) == first
    end_the_next(storage)

    again = job(unique_for=HOUR)

    assert storage.enqueue(again) == again.id


@pytest.mark.parametrize("period", [None, HOUR])
def test_one_that_has_not_begun_is_replaced_and_one_that_runs_or_has_ended_in_its_period_is_kept(
    storage: Storage, period: timedelta | None
) -> None:
    first, second, third, fourth = (job(**REPLACE, unique_for=period) for _ in range(4))

    assert storage.enqueue(first) == first.id
    assert storage.enqueue(second) == second.id
    replaced = present(storage, first.id)
    assert replaced.state_name is StateName.DELETED
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None
    assert claim.job.id == second.id
    assert storage.enqueue(third) == second.id
    storage.finish(claim, DONE, retention=KEEP)
    assert storage.enqueue(fourth) == (fourth.id if period is None else second.id)


@pytest.mark.parametrize("period", [None, HOUR])
def test_one_that_was_replaced_is_kept_as_its_app_says(
    url: str, storage: Storage, connect: Callable[[], Any], period: timedelta | None
) -> None:
    app = QmlApp(url, config=ServerConfig(succeeded_ttl=3 * HOUR))
    jobs = [job(**REPLACE, unique_for=period) for _ in range(4)]
    connection = connect()

    app.enqueue_many(jobs[:2])
    app.enqueue_many([jobs[2]])
    app.enqueue("work", **REPLACE, unique_for=period)
    if url.startswith("sqlite"):
        connection.execute("BEGIN IMMEDIATE")
    app.enqueue_many([jobs[3]], conn=connection)
    connection.commit()
    app.close()

    replaced = storage.list_jobs(JobFilter(states=[StateName.DELETED]), limit=9).jobs
    assert [kept_for(each) for each in replaced] == [3 * HOUR] * 4


@pytest.mark.parametrize("many", [False, True])
def test_one_that_replaces_without_a_period_holds_the_key_for_the_rest_of_the_others(
    storage: Storage, raw: Raw, many: bool
) -> None:
    first, second, third, fourth = (
        job(unique_for=period, on_conflict=on_conflict)
        for period, on_conflict in ((HOUR, "keep"), (None, "replace"), (HOUR, "keep"), (HOUR, "replace"))
    )
    if many:
        assert storage.enqueue_many([first, second]) == [first.id, second.id]
    else:
        storage.enqueue(first)
        storage.enqueue(second)

    assert storage.enqueue(second) == second.id  # again, as its reply was lost
    assert storage.enqueue(third) == second.id
    assert storage.enqueue(fourth) == fourth.id
    states = [present(storage, each.id).state_name for each in (first, second, fourth)]
    assert states == [StateName.DELETED, StateName.DELETED, StateName.ENQUEUED]


def test_of_a_list_the_last_replaces_and_the_first_is_kept(storage: Storage) -> None:
    kept = [job(unique_for=HOUR) for _ in range(3)]

    assert storage.enqueue_many(kept) == [kept[0].id] * 3
    assert storage.job_counts()[StateName.ENQUEUED] == 1


def test_it_is_written_with_the_callers_transaction(
    url: str, storage: Storage, connect: Callable[[], Any]
) -> None:
    storage.migrate()
    connection = connect()
    if url.startswith("sqlite"):
        connection.execute("BEGIN IMMEDIATE")
    else:
        connection.execute("SELECT 1")
    [first, second] = (job(unique_for=HOUR, on_conflict="replace") for _ in range(2))
    storage.enqueue_in(connection, [first])
    storage.enqueue_in(connection, [second])
    connection.rollback()

    assert storage.get(first.id) is None
    assert storage.enqueue(first) == first.id


@pytest.mark.parametrize(
    ("processes", "options"),
    [(15, {"unique_for": HOUR}), (15, {"on_conflict": "replace"})],
    ids=str,
)
def test_of_many_processes_that_enqueue_one_key_at_once_exactly_one_row_is_left(
    url: str, storage: Storage, processes: int, options: dict[str, Any]
) -> None:
    storage.migrate()
    storage.close()

    def enqueue() -> None:
        # So many at once begin slowly, and wait for one another.
        with closing(QmlApp(url)) as app, app._client.attached(url, open_patiently(url)):
            new = job(**options)
            handle = app.enqueue_many([new])[0]
            assert handle.is_new is (handle.id == new.id)

    statuses = in_children([enqueue] * processes)

    assert statuses == [0] * processes
    counts = storage.job_counts()
    assert counts[StateName.ENQUEUED] == 1
    assert counts[StateName.DELETED] == (processes - 1 if "on_conflict" in options else 0)


def test_stopped_before_any_of_its_queries_it_has_replaced_nothing(
    url: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = storage.enqueue(job(unique_for=HOUR))
    new = job(**REPLACE, unique_for=HOUR)
    storage.close()

    def fail_before(number: int) -> bool:
        with closing(open_storage(url)) as mine, monkeypatch.context() as patched:
            before_query(mine, number, interrupt, patched)
            try:
                mine.enqueue(new)
            except StorageUnavailable:
                return False
            return True

    for number in count(1):
        if fail_before(number):
            break
        assert present(storage, first).state_name is StateName.ENQUEUED
        assert storage.lock_holder("qml-mp:unique:k") == first
        storage.close()

    assert number > 4
    assert present(storage, first).state_name is StateName.DELETED
    assert storage.lock_holder("qml-mp:unique:k") == new.id


@pytest.mark.parametrize(
    "wrong", [{"unique_for": timedelta()}, {"on_conflict": "raise"}, {"unique_key": None, "unique_for": HOUR}]
)
def test_what_no_job_can_have_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob):
        job(**wrong)


# A list of jobs with one unique key several times does what its jobs would do one by

KINDS: dict[str, dict[str, Any]] = {
    "keeps": {},
    "keeps for an hour": {"unique_for": HOUR},
    "replaces": {"on_conflict": "replace"},
    "replaces for an hour": {"unique_for": HOUR, "on_conflict": "replace"},
}
EARLIER = ["none", "waits", "waits for an hour", "runs", "has ended in its hour"]
_HELD = "qml-mp:unique:k"


def enqueue_earlier(storage: Storage, what: str) -> None:
    if what == "none":
        return
    storage.enqueue(job(unique_for=HOUR if "hour" in what else None))
    if what.startswith("waits"):
        return
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None
    if what == "has ended in its hour":
        storage.finish(claim, DONE, retention=KEEP)


@pytest.mark.parametrize("earlier", EARLIER)
def test_a_list_does_what_its_jobs_do_one_by_one(storage: Storage, raw: Raw, earlier: str) -> None:
    def outcome(kinds: tuple[str, ...], *, many: bool) -> object:
        """Of each the place of the job that stands for it and its state; and who holds the key."""
        for table in ("jobs", "locks"):
            raw.run(f"DELETE FROM {{{table}}}")
        enqueue_earlier(storage, earlier)
        jobs = [job(**KINDS[kind]) for kind in kinds]
        ids = storage.enqueue_many(jobs) if many else [storage.enqueue(each) for each in jobs]
        places = {each.id: place for place, each in enumerate(jobs)}
        holder = places.get(storage.lock_holder(_HELD) or "")
        return [(places.get(job_id), present(storage, job_id).state_name) for job_id in ids], holder

    for kinds in product(KINDS, repeat=3):
        assert outcome(kinds, many=True) == outcome(kinds, many=False), kinds


@pytest.mark.parametrize("period", [None, HOUR])
def test_a_list_whose_reply_was_lost_is_written_once(storage: Storage, period: Any) -> None:
    jobs = [job(on_conflict="replace", unique_for=period) for _ in range(7)]

    first, again = storage.enqueue_many(jobs), storage.enqueue_many(jobs)

    assert first == again == [each.id for each in jobs]
    assert present(storage, jobs[-1].id).state_name is StateName.ENQUEUED
    assert storage.job_counts()[StateName.DELETED] == 6
    assert storage.lock_holder(_HELD) == (None if period is None else jobs[-1].id)
