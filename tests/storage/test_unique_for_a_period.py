"""Tests of the storage: unique keys that are held for a period, and jobs that replace the one with the
key."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from itertools import count
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
from tests.storage.helpers import DONE, HOUR, KEEP, fetch, in_children, open_patiently, present
from tests.storage.test_exchange import before_query, interrupt

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
@pytest.mark.parametrize("on_conflict", ["keep", "replace"])
@pytest.mark.parametrize("period", [None, HOUR])
def test_one_whose_reply_was_lost_and_that_another_has_replaced_since_replaces_nothing(
    storage: Storage, period: timedelta | None, on_conflict: Any, many: bool
) -> None:
    def enqueue(new: Job) -> str:
        return storage.enqueue_many([Job.new("work"), new])[1] if many else storage.enqueue(new)

    first, second = (job(unique_for=period, on_conflict=each) for each in (on_conflict, "replace"))
    enqueue(first)
    enqueue(second)

    again = enqueue(first)

    assert again == first.id
    states = [present(storage, each.id).state_name for each in (first, second)]
    assert states == [StateName.DELETED, StateName.ENQUEUED]
    assert storage.lock_holder("qml-mp:unique:k") == (None if period is None else second.id)


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


def test_the_rest_of_a_period_outlives_the_job_that_has_replaced_the_first(
    storage: Storage, raw: Raw
) -> None:
    storage.enqueue(job(unique_for=HOUR))
    second = storage.enqueue(job(**REPLACE))
    end_the_next(storage)

    assert storage.enqueue(job(unique_for=HOUR)) == second
    raw.age("locks", "expires_at", 2 * HOUR)
    later = job(unique_for=HOUR)
    assert storage.enqueue(later) == later.id


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
    [(50, {}), (50, {"unique_for": HOUR}), (15, {"on_conflict": "replace"})],
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


@pytest.mark.parametrize("way", ["interrupted", "killed"])
def test_stopped_before_any_of_its_queries_it_has_replaced_nothing(
    url: str, storage: Storage, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    first = storage.enqueue(job(unique_for=HOUR))
    new = job(**REPLACE, unique_for=HOUR)
    storage.close()

    def die_before(number: int) -> bool:
        def run() -> None:
            with closing(open_storage(url)) as mine:
                before_query(mine, number, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
                mine.enqueue(new)

        return in_children([run]) == [0]

    def fail_before(number: int) -> bool:
        with closing(open_storage(url)) as mine, monkeypatch.context() as patched:
            before_query(mine, number, interrupt, patched)
            try:
                mine.enqueue(new)
            except StorageUnavailable:
                return False
            return True

    for number in count(1):
        if (die_before if way == "killed" else fail_before)(number):
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
