"""Tests of the storage: what a worker has sent before it raised its epoch can claim nothing any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Renewed
from tests.storage.claimer import FETCH, Claimer, register, worker
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, finish_and_fetch, patient_url, present
from tests.storage_rows import hold_writes, pause_writes

HASTE = timedelta(seconds=0.3)
only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@pytest.fixture
def claimer(url: str, raw: Raw) -> Iterator[Claimer]:
    with closing(Claimer(url, raw)) as made:
        yield made


def test_what_a_worker_holds_is_told_with_its_new_epoch(storage: Storage) -> None:
    register(storage)
    storage.enqueue_many(Job.new("work", {"n": number}) for number in range(3))
    held = tuple(filter(None, (storage.fetch_and_lock_job(FETCH), storage.fetch_and_lock_job(FETCH))))

    renewed = [storage.renew_epoch("w-1"), storage.renew_epoch("w-1")]

    assert len(held) == 2
    assert renewed == [Renewed(epoch=1, claims=held), Renewed(epoch=2, claims=held)]
    assert [info.epoch for info in storage.list_workers()] == [2]


@pytest.mark.fault(77)
def test_only_what_was_asked_under_the_newest_epoch_claims(storage: Storage) -> None:
    register(storage)
    first_id, second_id, third_id = storage.enqueue_many([Job.new("work") for _ in range(3)])
    claim = storage.fetch_and_lock_job(FETCH)
    assert claim is not None
    renewed = storage.renew_epoch("w-1")
    assert renewed is not None

    late = storage.fetch_and_lock_job(FETCH)
    finished, next_claim = finish_and_fetch(storage, claim, DONE, FETCH)
    asked = storage.fetch_and_lock_job(replace(FETCH, epoch=renewed.epoch))

    assert late is None
    assert (finished.accepted, next_claim) == (True, None)
    assert present(storage, first_id).state_name is StateName.SUCCEEDED
    assert asked is not None
    assert asked.job.id == second_id
    assert present(storage, third_id).state_name is StateName.ENQUEUED


def test_a_worker_without_a_row_has_no_epoch(storage: Storage) -> None:
    assert storage.renew_epoch("w-1") is None


def test_registering_again_never_lowers_an_epoch(storage: Storage) -> None:
    register(storage)
    storage.renew_epoch("w-1")

    epochs = []
    for sent in (0, 1, 7):
        assert storage.register_worker(worker(epoch=sent))
        epochs += [info.epoch for info in storage.list_workers()]

    assert epochs == [1, 1, 7]


@only_postgres
@pytest.mark.fault(77)
def test_a_claim_that_the_server_begins_after_the_epoch_was_raised_takes_nothing(
    storage: Storage, raw: Raw, connect: Callable[[], Any], claimer: Claimer
) -> None:
    register(storage)
    job_id = storage.enqueue(Job.new("work"))
    with connect() as other:
        other.execute(f"LOCK TABLE {raw.name('jobs')} IN SHARE MODE")
        claim = claimer.send()

        renewed = storage.renew_epoch("w-1")

    assert renewed == Renewed(epoch=1, claims=())
    assert claim.result(20) is None
    assert present(storage, job_id).state_name is StateName.ENQUEUED


@only_postgres
@pytest.mark.fault(77)
def test_a_claim_that_meets_the_raising_of_the_epoch_takes_nothing(
    storage: Storage, raw: Raw, connect: Callable[[], Any], claimer: Claimer
) -> None:
    register(storage)
    job_id = storage.enqueue(Job.new("work"))
    with connect() as other:
        other.execute(f"SELECT FROM {raw.name('workers')} FOR UPDATE")
        other.execute(f"UPDATE {raw.name('workers')} SET epoch = epoch + 1")
        claim = claimer.send()

    assert claim.result(20) is None
    assert present(storage, job_id).state_name is StateName.ENQUEUED


@only_postgres
@pytest.mark.fault(77)
def test_raising_the_epoch_waits_for_a_claim_that_is_being_made_and_tells_it(
    url: str, storage: Storage, raw: Raw, connect: Callable[[], Any], claimer: Claimer
) -> None:
    register(storage)
    storage.enqueue(Job.new("work"))
    pause_writes(storage, StateName.PROCESSING)
    with closing(open_storage(patient_url(url), patience=HASTE)) as impatient, connect() as other:
        hold_writes(other)
        claim = claimer.send()
        with pytest.raises(StorageUnavailable):
            impatient.renew_epoch("w-1")
        other.rollback()
        made = claim.result(20)

        renewed = storage.renew_epoch("w-1")

    assert made is not None
    assert renewed == Renewed(epoch=1, claims=(made,))
