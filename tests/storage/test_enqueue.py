"""Tests of the storage: what enqueueing writes, one job or many."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.core.options import LAST_INSTANT
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.state import Enqueued, Failed, Scheduled, StateName
from qml_mp.errors import InvalidJob, StorageError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw
from tests.storage.helpers import DONE, KEEP, fetch, in_an_hour, in_children, open_patiently, present


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


def test_whatever_stands_in_a_value_is_only_a_value(storage: Storage) -> None:
    text = "o'); DROP TABLE jobs; -- %s {s} ? \\ $1 \""
    job = Job.new(text, {text: text}, unique_key=text, metadata={text: text})

    storage.enqueue(job)
    [listed] = storage.list_jobs(JobFilter(method=text)).jobs
    claim = storage.fetch_and_lock_job(replace(fetch(), methods=(text,)))
    assert claim is not None
    error = ErrorInfo(type="E", message=text, traceback=text)
    storage.finish(claim, Failure(error=error), retention=KEEP)

    assert (listed.method, listed.payload, listed.unique_key) == (text, {text: text}, text)
    assert claim.job.metadata == {text: text}
    assert [found.id for found in storage.list_jobs(JobFilter(error=text)).jobs] == [job.id]
    assert present(storage, job.id).last_error == error


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
    [{"x": float("inf")}, {"x": b"bytes"}, {"x": 2**63}, "a\0b", "\ud800", "x" * 2**20],
    ids=["infinity", "bytes", "int of 65 bits", "NUL", "lone surrogate", "over 1 MiB"],
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


# Many jobs enqueued at once, by whichever way the backend has for them.

Connect = Callable[[], Any]

SEVERAL_STATEMENTS = 5000


on_postgres = pytest.mark.parametrize("url", ["postgres"], indirect=True)
"""SQLite announces nothing and has neither pipelines nor roles; test_sqlite_kill kills at every statement."""


def plain_jobs(number: int) -> list[Job]:
    return [Job.new("work", {"n": n, "text": "ä\t\\N\n"}) for n in range(number)]


def count(storage: Storage) -> int:
    return sum(storage.job_counts().values())


def test_jobs_of_every_kind_are_stored_in_one_bulk(storage: Storage) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    kinds: list[dict[str, Any]] = [
        {}, {"unique_key": "k"}, {"at": in_an_hour()}, {"at": past}, {"timeout": timedelta(seconds=3)},
        {"priority": 9, "max_retries": 0, "max_crashes": 2, "metadata": {"by": "ä"}, "queue": "other"},
    ]  # fmt: skip
    jobs = [Job.new("work", {"n": n, "text": "ä\t\\N\n"}, **kinds[n % 6]) for n in range(600)]

    ids = storage.enqueue_many(jobs)

    keyed = ids[1::6]
    assert set(keyed) == {jobs[1].id}  # of one key the first is stored
    for place in {0, 1, 2, 3, 4, 5, *range(594, 600)} - {595}:
        job, stored = jobs[place], present(storage, ids[place])
        assert stored.id == job.id
        state = StateName.SCHEDULED if place % 6 == 2 else StateName.ENQUEUED
        assert stored.state_name is state
        run_at = job.run_at if place % 6 == 2 else None
        assert replace(stored, state=job.state, run_at=run_at) == replace(job, run_at=run_at)
    assert count(storage) == 501


def test_a_bulk_enqueued_again_after_a_lost_reply_is_there_once(storage: Storage) -> None:
    jobs = plain_jobs(300)
    storage.enqueue(jobs[200])

    ids = [storage.enqueue_many(jobs), storage.enqueue_many(jobs)]

    assert ids == [[job.id for job in jobs]] * 2
    assert count(storage) == 300


def test_a_job_that_is_twice_in_a_bulk_is_refused_and_keeps_out_all(storage: Storage) -> None:
    jobs = plain_jobs(100)

    with pytest.raises(InvalidJob, match=rf"places 7 and 100 are .* same, {jobs[7].id} \('work'\)"):
        storage.enqueue_many([*jobs, jobs[7]])

    assert count(storage) == 0


def test_a_row_that_the_database_refuses_in_the_middle_keeps_out_all(storage: Storage, raw: Raw) -> None:
    refuse(raw, "bad")
    jobs = [*plain_jobs(120), Job.new("bad"), *plain_jobs(120)]

    with pytest.raises(StorageError, match=r"not_bad|refused"):
        storage.enqueue_many(jobs)

    assert count(storage) == 0
    assert len(storage.enqueue_many(jobs[:120])) == count(storage) == 120


def refuse(raw: Raw, method: str) -> None:
    """Have the database take no job of this method."""
    if raw.is_sqlite:
        raw.run(
            "CREATE TRIGGER refusal BEFORE INSERT ON {jobs} "
            f"WHEN new.method = '{method}' BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    else:
        raw.run(f"ALTER TABLE {{jobs}} ADD CONSTRAINT not_bad CHECK (method <> '{method}')")


def test_an_error_names_the_job_that_cannot_be_stored(storage: Storage) -> None:
    jobs = plain_jobs(60)
    bad = replace(jobs[40], payload={"x": float("nan")})

    with pytest.raises(InvalidJob, match=rf"place 40, {bad.id} \('work'\).*The payload at \['x'\] is nan"):
        storage.enqueue_many([*jobs[:40], bad, *jobs[41:]])

    assert count(storage) == 0


@pytest.mark.parametrize("again", [False, True], ids=["new", "one is there"])
def test_a_bulk_in_the_callers_transaction_goes_with_its_end(
    storage: Storage, connect: Connect, again: bool
) -> None:
    jobs = [*plain_jobs(100), Job.new("work", unique_key="k")]
    if again:
        storage.enqueue(jobs[50])
    connection = connect()

    undone = storage.enqueue_in(connection, jobs)
    connection.rollback()
    after_rollback = count(storage)
    done = storage.enqueue_in(connection, jobs)
    connection.execute("SELECT 1")  # the transaction can go on
    connection.commit()

    assert undone == done == [job.id for job in jobs]
    assert after_rollback == again
    assert count(storage) == 101


@on_postgres
def test_a_bulk_on_a_pipelined_connection_is_stored(storage: Storage, connect: Connect) -> None:
    storage.migrate()
    connection = connect()

    with connection.pipeline():
        storage.enqueue_in(connection, plain_jobs(100))
    connection.commit()

    assert count(storage) == 100


@on_postgres
@pytest.mark.fault(3)
def test_a_producer_killed_in_the_middle_of_a_bulk_leaves_none(
    storage: Storage, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.migrate()
    storage.close()
    jobs, row = plain_jobs(SEVERAL_STATEMENTS), SEVERAL_STATEMENTS // 2

    def be_killed() -> None:
        rows = iter(range(1, SEVERAL_STATEMENTS + 1))
        write_row = psycopg.Copy.write_row

        def write_or_die(copy: psycopg.Copy, values: Any) -> None:
            if next(rows) == row:
                os.kill(os.getpid(), signal.SIGKILL)
            write_row(copy, values)

        monkeypatch.setattr(psycopg.Copy, "write_row", write_or_die)
        open_patiently(url).enqueue_many(jobs)

    [status] = in_children([be_killed])

    assert status == signal.SIGKILL
    assert count(storage) == 0
    assert len(storage.enqueue_many(jobs)) == count(storage) == SEVERAL_STATEMENTS
