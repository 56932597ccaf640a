"""Tests of the storage: a worker claims only while its row is in the registry, and under its newest epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.core.job import Claim, Job
from qml_mp.core.outcome import Outcome, Release, Retry
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Exchanged, Renewed
from tests.storage.claimer import FETCH, Claimer, register, worker
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, HOUR, KEEP, NO, finish_and_fetch, patient_url, present
from tests.storage_rows import hold_writes, pause_writes

HASTE = timedelta(seconds=0.3)
only_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)


def settle_death(storage: Storage) -> int:
    """As the supervisor of the worker does; how many claims it held."""
    found = storage.deregister_worker("w-1")
    release = Release(reason="its worker died")
    storage.exchange([(claim, release) for claim in found], fetch=None, limit=0, retention=KEEP)
    return len(found)


def reclaim(storage: Storage) -> int:
    """As another supervisor does; how many claims it held."""
    return storage.reclaim_server("a#1", silent_for=None)


ENDINGS = pytest.mark.parametrize("end", [settle_death, reclaim])


def test_a_worker_that_is_not_registered_claims_nothing(storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("work"))

    assert storage.fetch_and_lock_job(FETCH) is None
    assert present(storage, job_id).state_name is StateName.ENQUEUED
    register(storage)
    claim = storage.fetch_and_lock_job(FETCH)
    assert claim is not None
    assert claim.job.id == job_id


@ENDINGS
def test_a_worker_whose_end_is_settled_claims_nothing_more(
    storage: Storage, end: Callable[[Storage], int]
) -> None:
    register(storage)
    job_id = storage.enqueue(Job.new("work"))

    assert end(storage) == 0

    assert storage.fetch_and_lock_job(FETCH) is None
    assert present(storage, job_id).state_name is StateName.ENQUEUED


def test_a_worker_that_was_removed_finishes_what_it_holds_and_gets_no_other(storage: Storage) -> None:
    register(storage)
    storage.enqueue_many([Job.new("work"), Job.new("work")])
    claim = storage.fetch_and_lock_job(FETCH)
    assert claim is not None
    storage.deregister_worker("w-1")

    finished, next_claim = finish_and_fetch(storage, claim, DONE, FETCH)

    assert finished.accepted
    assert next_claim is None
    assert present(storage, claim).state_name is StateName.SUCCEEDED


@pytest.fixture
def claimer(url: str, raw: Raw) -> Iterator[Claimer]:
    with closing(Claimer(url, raw)) as made:
        yield made


@only_postgres
@ENDINGS
@pytest.mark.fault(1)
def test_a_claim_that_the_server_begins_after_the_settling_takes_nothing(
    storage: Storage, raw: Raw, connect: Callable[[], Any], claimer: Claimer, end: Callable[[Storage], int]
) -> None:
    register(storage)
    job_id = storage.enqueue(Job.new("work"))
    with connect() as other:
        other.execute(f"LOCK TABLE {raw.name('jobs')} IN SHARE MODE")
        claim = claimer.send()

        assert end(storage) == 0

    assert claim.result(20) is None
    assert present(storage, job_id).state_name is StateName.ENQUEUED


@only_postgres
@pytest.mark.fault(1)
def test_a_claim_that_meets_the_settling_takes_nothing(
    storage: Storage, raw: Raw, connect: Callable[[], Any], claimer: Claimer
) -> None:
    register(storage)
    job_id = storage.enqueue(Job.new("work"))
    with connect() as other:
        other.execute(f"DELETE FROM {raw.name('workers')}")
        claim = claimer.send()

    assert claim.result(20) is None
    assert present(storage, job_id).state_name is StateName.ENQUEUED


@only_postgres
@ENDINGS
@pytest.mark.fault(1)
def test_the_settling_waits_for_a_claim_that_is_being_made_and_ends_it_too(
    url: str,
    storage: Storage,
    raw: Raw,
    connect: Callable[[], Any],
    claimer: Claimer,
    end: Callable[[Storage], int],
) -> None:
    register(storage)
    job_id = storage.enqueue(Job.new("work"))
    pause_writes(storage, StateName.PROCESSING)
    with closing(open_storage(patient_url(url), patience=HASTE)) as impatient, connect() as other:
        hold_writes(other)
        claim = claimer.send()
        with pytest.raises(StorageUnavailable):
            end(impatient)
        other.rollback()
        assert claim.result(20) is not None

        assert end(storage) == 1

    job = present(storage, job_id)
    assert (job.state_name, job.claim_seq) == (StateName.ENQUEUED, 1)
    assert storage.list_workers() == []


LIMIT = 3

Exchange = Callable[[Storage, Sequence[Claim]], Exchanged]


def writing(outcome: Outcome) -> Exchange:
    """An exchange that writes this about each claim, and claims others."""
    return lambda storage, held: storage.exchange(
        [(claim, outcome) for claim in held], fetch=FETCH, limit=LIMIT, retention=KEEP
    )


def sent_ahead(storage: Storage, held: Sequence[Claim]) -> Exchanged:
    """An exchange whose reply is read later."""
    done = [(claim, DONE) for claim in held]
    return storage.send_exchange(done, fetch=FETCH, limit=LIMIT, retention=KEEP)()


in_every_way = pytest.mark.parametrize(
    "exchange",
    [writing(DONE), writing(Retry(error=NO, delay=HOUR)), sent_ahead],
    ids=["one statement", "a transaction", "sent ahead"],
)


def hold_some(storage: Storage) -> Sequence[Claim]:
    """The claims of a worker; more jobs wait."""
    register(storage)
    storage.enqueue_many(Job.new("work") for _ in range(2 * LIMIT))
    return storage.exchange((), fetch=FETCH, limit=LIMIT, retention=KEEP).claims


@only_postgres
@in_every_way
@pytest.mark.parametrize("waits_for", ["the table", "a row of an outcome"])
@pytest.mark.fault(1)
def test_of_an_exchange_that_ends_after_the_look_of_the_settling_no_claim_comes(
    storage: Storage,
    raw: Raw,
    connect: Callable[[], Any],
    claimer: Claimer,
    exchange: Exchange,
    waits_for: str,
) -> None:
    held = hold_some(claimer.storage)
    with connect() as other:
        if waits_for == "the table":
            other.execute(f"LOCK TABLE {raw.name('jobs')} IN SHARE MODE")
        else:
            row = f"SELECT FROM {raw.name('jobs')} WHERE id = %s FOR UPDATE"
            other.execute(row, [held[1].job.id])
        exchanged = claimer.ask(lambda dying: exchange(dying, held))

        found = storage.deregister_worker("w-1")

    assert exchanged.result(20).claims == ()
    assert all(done.accepted for done in exchanged.result().finished)
    assert {claim.key for claim in found} == {claim.key for claim in held}
    assert storage.claims_of_worker("w-1") == []


@only_postgres
@in_every_way
@pytest.mark.fault(1)
def test_the_look_of_the_settling_waits_for_an_exchange_that_is_claiming(
    url: str,
    storage: Storage,
    connect: Callable[[], Any],
    claimer: Claimer,
    exchange: Exchange,
) -> None:
    held = hold_some(claimer.storage)
    pause_writes(storage, StateName.PROCESSING)
    with closing(open_storage(patient_url(url), patience=HASTE)) as impatient, connect() as other:
        hold_writes(other)
        exchanged = claimer.ask(lambda dying: exchange(dying, held))
        with pytest.raises(StorageUnavailable):
            impatient.deregister_worker("w-1")
        other.rollback()

        found = storage.deregister_worker("w-1")

    claims = exchanged.result(20).claims
    assert len(claims) == LIMIT
    assert {claim.key for claim in found} == {claim.key for claim in claims}


# What a worker has sent before it raised its epoch can claim nothing any more.


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
