"""Tests of the storage: what a hot operation costs must not grow with the table."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import closing

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import Failure
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, NO, fetch, in_an_hour, open_patiently, sqlite_connection
from tests.until import wait_until

pytestmark = pytest.mark.nightly  # fills large tables

MANY = 20_000
OPERATIONS: list[Callable[[Storage], object]] = [
    lambda storage: storage.fetch_and_lock_job(fetch("mail")),
    lambda storage: storage.exchange((), fetch=fetch(), limit=50, retention=KEEP),
    lambda storage: storage.exchange(
        [(claim, DONE) for claim in storage.claims()[:5]], fetch=fetch(), limit=5, retention=KEEP
    ),
    lambda storage: storage.promote_due(limit=10),
    lambda storage: storage.delete_expired_jobs(limit=10),
    lambda storage: storage.list_jobs(JobFilter(states=[StateName.FAILED]), limit=10),
    lambda storage: storage.enqueue(Job.new("work", unique_key="k")),
    lambda storage: storage.has_due_work([]),
]


def fill(storage: Storage, raw: Raw, number: int) -> None:
    """So many jobs that wait, and so many of each kind that others must not be slowed down by."""
    storage.enqueue_many(Job.new(f"m{n % 3}", queue="mail" if n % 100 == 0 else "big") for n in range(number))
    storage.enqueue_many(Job.new("work", at=in_an_hour()) for _ in range(number))
    storage.enqueue_many(Job.new("ended", queue="ended") for _ in range(number // 10))
    ended = storage.exchange((), fetch=fetch("ended"), limit=number // 10, retention=KEEP).claims
    storage.exchange([(claim, Failure(error=NO)) for claim in ended], fetch=None, limit=0, retention=KEEP)
    if not raw.is_sqlite:
        raw.run("ANALYZE {jobs}")


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_on_postgresql_they_read_few_rows_of_a_large_table(storage: Storage, url: str, raw: Raw) -> None:
    fill(storage, raw, MANY)
    schema, name = raw.name("jobs").partition(".")[0].strip('"'), f"reader-{uuid.uuid4()}"

    def rows_read_by(operation: Callable[[Storage], object]) -> int:
        """A session tells of what it has read before it ends."""
        before = rows_read(raw, schema)
        with closing(open_patiently(url, application_name=name)) as reader:
            operation(reader)
        sessions = "SELECT 1 FROM pg_stat_activity WHERE application_name = ?"
        wait_until(lambda: not raw.run(sessions, name), what="the end of its session")
        return rows_read(raw, schema) - before

    storage.close()
    assert rows_read_by(lambda reader: reader.job_counts()) > MANY  # so it is told

    assert [rows for rows in map(rows_read_by, OPERATIONS) if rows > MANY / 10] == []


def rows_read(raw: Raw, schema: str) -> int:
    """So far, of all tables."""
    [(rows,)] = raw.run(
        "SELECT sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint "
        "FROM pg_stat_user_tables WHERE schemaname = ?",
        schema,
    )
    return int(rows)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_on_sqlite_they_take_as_many_steps_however_large_the_table_is(storage: Storage, raw: Raw) -> None:
    def steps() -> list[int]:
        """Of each operation, in hundreds."""
        counts = []
        for operation in OPERATIONS:
            count = 0

            def step() -> None:
                nonlocal count
                count += 1

            storage.job_counts()
            with sqlite_connection(storage).read() as connection:
                connection.set_progress_handler(step, 100)
            operation(storage)
            counts.append(count)
            storage.close()
        return counts

    fill(storage, raw, 1000)
    few = steps()
    fill(storage, raw, MANY)
    many = steps()

    assert all(now <= 2 * before + 50 for before, now in zip(few, many, strict=True)), (few, many)
