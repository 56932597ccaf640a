"""Tests of the PostgreSQL backend: after an error of the server its connection is made anew."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.helpers import DONE, KEEP, fetch, finish_and_fetch, in_schema, patient_url

SCHEMA = f"renewed_{uuid.uuid4().hex}"  # of this process: others use the server too
HASTE = timedelta(milliseconds=100)
PREPARED_AFTER = 5  # uses of a statement until the driver prepares it
LOCKS = 3

pytestmark = pytest.mark.usefixtures("time_for_work")


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A connection of somebody else's to the same database; the schema of the test goes with it."""
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        yield connection
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


@pytest.fixture
def storage(postgres_url: str, admin: psycopg.Connection) -> Iterator[Storage]:
    with closing(
        open_storage(patient_url(in_schema(postgres_url, SCHEMA)), application_name=SCHEMA, patience=HASTE)
    ) as opened:
        opened.migrate()
        yield opened


def enqueue(storage: Storage) -> None:
    storage.enqueue(Job.new("work"))


def enqueue_many(storage: Storage) -> None:
    storage.enqueue_many([Job.new("work"), Job.new("work")])


def promote(storage: Storage) -> None:
    storage.promote_due(limit=10)


OPERATIONS = [enqueue, enqueue_many, promote]


@pytest.mark.fault(76)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("before", [0, PREPARED_AFTER + 1])
def test_whatever_a_lock_interrupts_works_again_when_the_lock_is_gone(
    storage: Storage,
    admin: psycopg.Connection,
    operation: Callable[[Storage], None],
    before: int,
) -> None:
    for _ in range(before):
        operation(storage)

    for _ in range(LOCKS):
        with admin.transaction():
            admin.execute(f"LOCK TABLE {SCHEMA}.jobs IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StorageUnavailable, match="lock timeout"):
                operation(storage)

        operation(storage)


@pytest.mark.fault(76)
@pytest.mark.parametrize("before", [0, PREPARED_AFTER + 1])
def test_an_outcome_that_a_lock_held_up_is_written_with_the_next_claim_when_the_lock_is_gone(
    storage: Storage, admin: psycopg.Connection, before: int
) -> None:
    storage.enqueue_many(Job.new("work") for _ in range(before + LOCKS + 1))
    claim = storage.fetch_and_lock_job(fetch())
    for _ in range(before):
        assert claim is not None
        claim = finish_and_fetch(storage, claim, DONE, fetch())[1]

    for _ in range(LOCKS):
        assert claim is not None
        with admin.transaction():
            admin.execute(f"LOCK TABLE {SCHEMA}.jobs IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StorageUnavailable, match="lock timeout"):
                finish_and_fetch(storage, claim, DONE, fetch())
        finished, claim = finish_and_fetch(storage, claim, DONE, fetch())
        assert finished.accepted
        assert finished.state is StateName.SUCCEEDED


ALTERATIONS = ["ADD COLUMN noted_by text DEFAULT 'nobody'", "ALTER COLUMN priority TYPE bigint"]


@pytest.mark.fault(83)
@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_a_table_altered_under_a_connection_costs_its_statements_nothing(
    storage: Storage, admin: psycopg.Connection, alteration: str
) -> None:
    def one_more(queue: str) -> None:
        job_id = storage.enqueue(Job.new("work", queue=queue))
        found = storage.get(job_id)
        assert found is not None
        claim = storage.fetch_and_lock_job(fetch(queue))
        assert claim is not None
        assert claim.job.id == job_id
        next_id = storage.enqueue(Job.new("work", queue=queue))
        finished, claim = finish_and_fetch(storage, claim, DONE, fetch(queue))
        assert finished.accepted
        assert claim is not None
        assert claim.job.id == next_id
        assert storage.finish(claim, DONE, retention=KEEP).accepted

    for number in range(PREPARED_AFTER + 2):
        one_more(f"before-{number}")

    admin.execute(f"ALTER TABLE {SCHEMA}.jobs {alteration}")

    for number in range(PREPARED_AFTER + 2):
        one_more(f"after-{number}")
