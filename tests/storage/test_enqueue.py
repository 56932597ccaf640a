"""Tests of the storage: what enqueueing writes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp.core.job import Job
from qml_mp.core.options import LAST_INSTANT
from qml_mp.core.state import Enqueued, Failed, Scheduled, StateName
from qml_mp.errors import InvalidJob
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.helpers import DONE, KEEP, fetch, in_an_hour, present


def test_a_job_is_read_back_as_it_was_enqueued(storage: Storage) -> None:
    job = Job.new(
        "images.resize", {"path": "ä\u2028🎉.png", "sizes": [1, 2.5, None, True], "big": 2**63 - 1},
        queue="images", priority=-7, max_retries=3, metadata={"trace": "abc"}, timeout=timedelta(seconds=90),
        unique_key="images/ä.png",
    )  # fmt: skip

    job_id = storage.enqueue(job)

    stored = present(storage, job_id)
    assert isinstance(stored.state, Enqueued)
    assert replace(stored, state=job.state) == job


def test_an_id_that_nobody_has_finds_nothing(storage: Storage) -> None:
    storage.enqueue(Job.new("work"))

    found = [storage.get(text) for text in (str(uuid.uuid4()), "no id", "", "\ud800", "x\0y")]

    assert found == [None] * 5


def test_an_id_finds_its_job_in_any_spelling_of_a_uuid(storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("work"))

    assert present(storage, job_id.upper()).id == job_id


def test_a_job_for_the_last_possible_instant_is_scheduled(storage: Storage) -> None:
    job = present(storage, storage.enqueue(Job.new("work", at=LAST_INSTANT)))

    assert job.run_at == LAST_INSTANT


def test_a_job_for_later_is_scheduled(storage: Storage) -> None:
    at = in_an_hour()

    job = present(storage, storage.enqueue(Job.new("work", at=at)))

    assert isinstance(job.state, Scheduled)
    assert job.state.enqueue_at == job.run_at == at
    assert storage.fetch_and_lock_job(fetch()) is None


def test_a_job_for_an_instant_that_has_passed_runs_now(storage: Storage) -> None:
    job = present(storage, storage.enqueue(Job.new("work", at=datetime.now(UTC) - timedelta(hours=1))))

    assert isinstance(job.state, Enqueued)
    assert job.run_at is None


def test_a_second_job_with_a_live_unique_key_is_not_written(storage: Storage) -> None:
    first = storage.enqueue(Job.new("work", 1, unique_key="k", at=in_an_hour()))

    second = storage.enqueue(Job.new("work", 2, unique_key="k"))

    assert second == first
    assert present(storage, first).payload == 1
    assert sum(storage.job_counts().values()) == 1


def test_a_unique_key_is_free_again_when_its_job_has_ended(storage: Storage) -> None:
    first = storage.enqueue(Job.new("work", unique_key="k"))
    claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None

    while_running = storage.enqueue(Job.new("work", unique_key="k"))
    storage.finish(claim, DONE, retention=KEEP)
    afterwards = storage.enqueue(Job.new("work", unique_key="k"))

    assert while_running == first
    assert afterwards != first
    assert present(storage, afterwards).state_name is StateName.ENQUEUED


def test_many_jobs_get_their_ids_in_order(storage: Storage) -> None:
    jobs = [Job.new("work", n, unique_key="k" if n % 2 else None) for n in range(6)]

    ids = storage.enqueue_many(job for job in jobs)

    assert ids[0::2] == [jobs[n].id for n in (0, 2, 4)]
    assert ids[1] == ids[3] == ids[5]  # one of the three that share a key stands for all
    assert sum(storage.job_counts().values()) == 4


def test_no_jobs_are_no_error(storage: Storage) -> None:
    assert storage.enqueue_many([]) == []


def test_many_jobs_with_one_that_cannot_be_stored_are_none(storage: Storage) -> None:
    good = [Job.new("work", n) for n in range(3)]
    bad = replace(good[0], id=str(uuid.uuid4()), payload={"x": float("nan")})

    with pytest.raises(InvalidJob, match="payload"):
        storage.enqueue_many([*good, bad])

    assert sum(storage.job_counts().values()) == 0


def test_many_jobs_whose_source_raises_are_none(storage: Storage) -> None:
    def jobs() -> Iterator[Job]:
        yield Job.new("work")
        storage.enqueue(Job.new("another"))  # the caller's own code may use the storage meanwhile
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        storage.enqueue_many(jobs())

    assert [job.method for job in storage.list_jobs(JobFilter()).jobs] == ["another"]


def test_enqueueing_the_same_job_again_after_a_lost_reply_keeps_one(storage: Storage) -> None:
    job = Job.new("work")

    ids = [storage.enqueue(job), storage.enqueue(job)]

    assert ids == [job.id, job.id]
    assert sum(storage.job_counts().values()) == 1


@pytest.mark.fault(26)
@pytest.mark.fault(28)
@pytest.mark.parametrize(
    "payload",
    [{"x": float("inf")}, {"x": b"bytes"}, {"x": 2**63}, {1: "x"}, "a\0b", "\ud800", "x" * 2**20],
    ids=["infinity", "bytes", "int of 65 bits", "key", "NUL", "lone surrogate", "over 1 MiB"],
)
def test_a_payload_that_cannot_be_stored_is_refused_and_nothing_is_written(
    storage: Storage, payload: object
) -> None:
    job = replace(Job.new("work"), payload=payload)  # type: ignore[arg-type]

    with pytest.raises(InvalidJob):
        storage.enqueue(job)

    assert sum(storage.job_counts().values()) == 0


def test_a_job_that_is_not_new_is_refused(storage: Storage) -> None:
    job = Job.new("work")
    failed = replace(job, state=Failed(failed_at=job.created_at, exception=None, retry_count=0))

    with pytest.raises(InvalidJob, match="failed"):
        storage.enqueue(failed)

    assert storage.get(job.id) is None
