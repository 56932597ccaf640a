"""Tests of the storage: a list of jobs with one unique key several times does what its jobs would do one by
one."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage import unique
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, fetch, open_patiently, present
from tests.storage.test_postgres_threads import WAITING
from tests.until import wait_until

KINDS: dict[str, dict[str, Any]] = {
    "keeps": {},
    "keeps for an hour": {"unique_for": HOUR},
    "replaces": {"on_conflict": "replace"},
    "replaces for an hour": {"unique_for": HOUR, "on_conflict": "replace"},
}
EARLIER = ["none", "waits", "waits for an hour", "runs", "has ended in its hour"]
_HELD = "qml-mp:unique:k"


def job(**options: Any) -> Job:
    return Job.new("work", **{"unique_key": "k", **options})


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
def test_of_many_that_replace_one_another_the_last_is_left(storage: Storage, period: Any) -> None:
    earlier = storage.enqueue(job(unique_for=period))
    others = [Job.new("work"), Job.new("work", unique_key="other", on_conflict="replace")]
    many = [job(on_conflict="replace", unique_for=period) for _ in range(30)]

    ids = storage.enqueue_many([others[0], *many, others[1]])

    assert ids == [others[0].id, *(each.id for each in many), others[1].id]
    states = [present(storage, job_id).state_name for job_id in (earlier, *ids[1:-1])]
    assert states == [StateName.DELETED] * 30 + [StateName.ENQUEUED]
    assert storage.job_counts()[StateName.ENQUEUED] == 3
    assert storage.lock_holder(_HELD) == (None if period is None else many[-1].id)


def test_keys_are_taken_in_one_order_whatever_that_of_the_list_is(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or two lists with the same keys would wait for each other for ever."""
    inserted: list[str | None] = []
    insert_together = unique._insert_together

    def noting(queries: Any, transaction: Any, rows: Any, wishes: Any, retention: Any) -> list[str]:
        inserted.extend(row.unique_key for row in rows)
        return insert_together(queries, transaction, rows, wishes, retention)

    monkeypatch.setattr(unique, "_insert_together", noting)
    keys = ["d", "b", "d", "e", "b", "a", "c"]
    jobs = [Job.new("work", unique_key=key, on_conflict="replace") for key in keys]
    ids = storage.enqueue_many([Job.new("work"), *jobs])

    assert inserted == [None, "a", "b", "b", "c", "d", "d", "e"]
    assert ids[1:] == [each.id for each in jobs]


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
@pytest.mark.parametrize("keys", ["a z", "a a z"])
@pytest.mark.parametrize("periods", [(None, None), (HOUR, HOUR), (HOUR, None)])
def test_jobs_are_replaced_in_the_order_in_which_everybody_locks_several(
    storage: Storage, url: str, raw: Raw, connect: Callable[[], Any], keys: str, periods: tuple[Any, Any]
) -> None:
    """Or a list and who deletes those jobs would wait for each other for ever."""
    period_of = dict(zip("az", periods, strict=True))

    def job_of(key: str, **options: Any) -> Job:
        return Job.new("work", unique_key=key, unique_for=period_of[key], **options)

    low, high = (storage.enqueue(job_of(key)) for key in "za")
    assert low < high
    lock = f"SELECT 1 FROM {raw.name('jobs')} WHERE id = %s FOR UPDATE"
    somebody, name = connect(), f"waiter-{uuid.uuid4()}"
    somebody.execute(lock, [low])

    with closing(open_patiently(url, application_name=name)) as waiter, ThreadPoolExecutor(1) as thread:
        many = [job_of(key, on_conflict="replace") for key in keys.split()]
        waits = thread.submit(waiter.enqueue_many, many)
        wait_until(lambda: raw.run(WAITING, name), what="one that waits to replace a job")
        free = raw.run("SELECT id FROM {jobs} WHERE id IN (?, ?) FOR UPDATE SKIP LOCKED", low, high)
        somebody.rollback()
        waits.result()

    assert free == [(high,)]
    assert [present(storage, each).state_name for each in (low, high)] == [StateName.DELETED] * 2


def test_one_that_stands_for_a_job_of_the_list_that_gave_way_stands_for_what_that_gave_way_to(
    storage: Storage,
) -> None:
    earlier = storage.enqueue(job())

    ids = storage.enqueue_many([job(unique_for=HOUR), job(unique_for=HOUR), Job.new("work")])

    assert ids[:2] == [earlier, earlier]
    assert storage.lock_holder(_HELD) is None


@pytest.mark.parametrize("period", [None, HOUR])
def test_a_list_whose_reply_was_lost_is_written_once(storage: Storage, period: Any) -> None:
    jobs = [job(on_conflict="replace", unique_for=period) for _ in range(7)]

    first, again = storage.enqueue_many(jobs), storage.enqueue_many(jobs)

    assert first == again == [each.id for each in jobs]
    assert present(storage, jobs[-1].id).state_name is StateName.ENQUEUED
    assert storage.job_counts()[StateName.DELETED] == 6
    assert storage.lock_holder(_HELD) == (None if period is None else jobs[-1].id)
