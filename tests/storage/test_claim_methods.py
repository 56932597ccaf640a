"""Tests of the storage: a worker is given jobs of the methods that it knows, and no others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, fetch, finish_and_fetch, present

QUEUES = pytest.mark.parametrize(
    "queues", [(), ("default",), ("default", "other")], ids=["all queues", "one queue", "several queues"]
)


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


@QUEUES
def test_the_best_job_is_claimed_whichever_method_it_has(
    storage: Storage, raw: Raw, queues: tuple[str, ...]
) -> None:
    made = [
        (number, raw.add_job(method=method, priority=priority, queue=queue))
        for number, (method, priority, queue) in enumerate(
            [
                ("b", 0, "default"),
                ("a", 0, "default"),
                ("c", 5, "default"),
                ("a", 7, "default"),
                ("b", 5, "default"),
                ("x" * 250, 6, "default"),
                ("", 8, "default"),
            ]
        )
    ]
    raw.run("UPDATE {jobs} SET created_at = ?", raw.instant(storage.now()))
    order = sorted(made, key=lambda one: (-[0, 0, 5, 7, 5, 6, 8][one[0]], one[1]))

    claims = [storage.fetch_and_lock_job(fetch(*queues)) for _ in made]

    assert [claim.job.id for claim in claims if claim is not None] == [job_id for _, job_id in order]
    assert storage.fetch_and_lock_job(fetch(*queues)) is None


@QUEUES
def test_a_name_that_only_begins_as_a_known_one_is_another_method(
    storage: Storage, raw: Raw, queues: tuple[str, ...]
) -> None:
    longest = "m" * 200
    raw.add_job(method=longest + "x" * 5000, priority=9)
    raw.add_job(method=longest + "x", priority=9)
    known_id = raw.add_job(method=longest)

    claim = storage.fetch_and_lock_job(replace(fetch(*queues), methods=(longest,)))

    assert claim is not None
    assert claim.job.id == known_id


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
