"""Tests of the storage: rows that other programs put into the tables harm nobody."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import Failure, Retry
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.ipc.slot import SlotTable, packed_terms
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw, driver_connection, raw_tables
from tests.storage.helpers import HOUR, KEEP, NO, claim_new, fetch, present
from tests.unit.processor_case import processor_of

UNREADABLE = {
    "no JSON": "{no json",
    "empty": "",
    "NaN": '{"x": NaN}',
    "huge number": '{"x": 1e999}',
    "lone surrogate": r'"\ud800"',
    "NUL": r'"\u0000"',
    "int of 300 digits": "1" * 300,
    "int of 5,000 digits": "1" * 5000,
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "2 MiB": '"' + "x" * 2**21 + '"',
}

FITS = '"' + "ä" * (MAX_PAYLOAD_BYTES // 2 - 1) + '"'


@pytest.mark.fault(27)
@pytest.mark.fault(29)
@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_job_with_an_unreadable_payload_is_handed_out_and_can_fail(
    storage: Storage, raw: Raw, payload: str
) -> None:
    without_size_limits(raw)
    job_id = raw.add_job(payload=payload)

    read, listed = present(storage, job_id), storage.list_jobs(JobFilter()).jobs
    claim = storage.fetch_and_lock_job(fetch())

    assert read.payload is None
    assert read.payload_error
    assert read.to_json()["payload_error"] == read.payload_error
    assert listed == (read,)
    assert claim is not None
    assert (claim.job.id, claim.job.payload, claim.job.payload_error) == (job_id, None, read.payload_error)
    assert [held.key for held in storage.claims()] == [claim.key]
    assert storage.finish(claim, Failure(error=NO), retention=KEEP).state is StateName.FAILED


@pytest.mark.parametrize("metadata", ["{no json", "[1]", "null", '"' + "x" * 2**21 + '"'])
def test_unreadable_metadata_reads_as_none_at_all(storage: Storage, raw: Raw, metadata: str) -> None:
    without_size_limits(raw)
    job_id = raw.add_job(metadata=metadata, payload='{"n": 1}')

    job = present(storage, job_id)

    assert (job.metadata, job.payload, job.payload_error) == ({}, {"n": 1}, None)


@pytest.mark.parametrize("column", ["payload", "metadata", "result"])
def test_the_table_refuses_json_that_is_too_large_and_says_which(
    storage: Storage, raw: Raw, column: str
) -> None:
    raw.add_job(**{column: FITS})

    with pytest.raises(Exception, match=f"{column}_is_at_most_1_mib"):
        raw.add_job(**{column: FITS + " "})


def test_the_table_refuses_a_template_whose_payload_is_too_large(storage: Storage, raw: Raw) -> None:
    storage.upsert_recurring_job(RecurringJob.new("daily", "0 0 9 * * *", "work"))
    raw.run("UPDATE {recurring_jobs} SET payload = ?", FITS)

    with pytest.raises(Exception, match="payload_is_at_most_1_mib"):
        raw.run("UPDATE {recurring_jobs} SET payload = ?", FITS + " ")


def test_an_unreadable_result_reads_as_none(storage: Storage, raw: Raw) -> None:
    job_id = raw.add_job(state="succeeded", result="{no json")

    assert present(storage, job_id).result is None
    assert present(storage, job_id).state_name is StateName.SUCCEEDED


@pytest.mark.fault(30)
def test_names_that_nobody_registered_are_only_text(storage: Storage, raw: Raw) -> None:
    names = ["os.system", "__import__", "", "x" * 100_000, "ä\u2028🎉"]
    for name in names:
        raw.add_job(method=name)

    assert sorted(job.method for job in storage.list_jobs(JobFilter()).jobs) == sorted(names)


@pytest.mark.parametrize("state", StateName)
def test_a_row_whose_columns_do_not_fit_its_state_is_readable(
    storage: Storage, raw: Raw, state: StateName
) -> None:
    job_id = raw.add_job(state=str(state))

    job = present(storage, job_id)

    assert job.state_name is state
    assert [listed.id for listed in storage.list_jobs(JobFilter(states=[state])).jobs] == [job_id]


def test_a_running_row_without_owner_or_start_is_released(storage: Storage, raw: Raw) -> None:
    job_id = raw.add_job(state="processing")
    raw.age("jobs", "created_at", KEEP.failed_ttl)

    count = storage.requeue_stranded_jobs(storage.now(), spare_servers=["alive#1"])

    assert count == 1
    assert present(storage, job_id).state_name is StateName.ENQUEUED


@pytest.mark.parametrize("column", ["enqueued_at", "started_at", "finished_at"])
@pytest.mark.parametrize("end_of_time", [1, -1], ids=["after", "before"])
def test_an_instant_that_python_cannot_hold_reads_as_none(
    storage: Storage, raw: Raw, column: str, end_of_time: int
) -> None:
    value = end_of_time * 2**62 if raw.is_sqlite else "infinity" if end_of_time > 0 else "-infinity"
    job_id = raw.add_job(**{column: value})

    (queue,), job, listed = storage.queue_stats(), present(storage, job_id), storage.list_jobs(JobFilter())
    claim = storage.fetch_and_lock_job(fetch())

    assert (queue.enqueued, queue.oldest is None) == (1, column == "enqueued_at")
    assert listed.jobs == (job,)
    assert claim is not None
    assert [held.key for held in storage.claims()] == [claim.key]
    assert storage.finish(claim, Failure(error=NO), retention=KEEP).state is StateName.FAILED


@pytest.mark.parametrize("state", ["running", "", "ENQUEUED"])
def test_the_table_refuses_an_unknown_state(storage: Storage, raw: Raw, state: str) -> None:
    with pytest.raises(Exception, match=r"(?i)check"):
        raw.add_job(state=state)


ODD_IDS = ("0" * 36, "-" * 36, "0" * 35 + "-", "0-" * 18)


@pytest.mark.parametrize("limit", [1, 3])
def test_rows_whose_id_is_no_uuid_are_failed_and_hold_up_nobody(
    storage: Storage, raw: Raw, limit: int
) -> None:
    for job_id in ODD_IDS:
        raw.add_job(id=job_id, priority=5)
    plain = [raw.add_job() for _ in range(3)]

    first = storage.fetch_and_lock_job(fetch())
    assert first is not None
    for job_id in ODD_IDS:
        raw.run("UPDATE {jobs} SET state = 'enqueued' WHERE id = ?", job_id)
    done = storage.exchange([(first, Failure(error=NO))], fetch=fetch(), limit=limit, retention=KEEP)

    assert done.finished[0].accepted
    assert {first.job.id, *(claim.job.id for claim in done.claims)} <= set(plain)
    assert len(done.claims) == min(limit, 2)
    for job in storage.list_jobs(JobFilter()).jobs:
        if job.id in ODD_IDS:
            assert (job.state_name, job.error and job.error.type) == (StateName.FAILED, "UnclaimableRow")


@pytest.mark.fault(28)
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("payload", b"\xff\xfe{"),
        ("payload", b'{"n": 1}'),
        ("payload", b"\0" * 2**20),
        ("metadata", b"\xff"),
        ("result", 1.5),
        ("method", b"\xff\0work"),
        ("max_retries", "many"),
        ("timeout_us", "long"),
        ("timeout_us", 2**62),
        ("unique_key", b"\xff"),
        ("last_error_type", b"\xff"),
        ("cancel_reason", 7),
        ("started_at", 2**62),
        ("fire_at", "never"),
    ],
)
def test_values_of_any_type_in_an_sqlite_file_are_read_without_an_error(
    tmp_path: Path, column: str, value: object
) -> None:
    with sqlite_with(tmp_path) as (storage, raw):
        job_id = raw.add_job(**{column: value})
        raw.run("UPDATE {jobs} SET method = CAST(x'ff41' AS TEXT) WHERE method = 'work'")

        job, listed = present(storage, job_id), storage.list_jobs(JobFilter()).jobs
        claim = storage.fetch_and_lock_job(fetch())

        assert listed == (job,)
        assert claim is not None
        f"{claim}".encode()  # printable: no lone surrogate is left in any text
        assert storage.finish(claim, Failure(error=NO), retention=KEEP).accepted


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("max_crashes", -1),
        ("max_crashes", 2**32),
        ("max_crashes", -(2**62)),
        ("max_retries", 2**62),
        ("failures", 2**62),
        ("failures", -(2**62)),
        ("timeout_us", -(2**60)),
    ],
)
def test_numbers_that_no_job_can_ask_for_do_not_break_the_worker_that_claims_them(
    tmp_path: Path, column: str, value: int
) -> None:
    slots = SlotTable(1)
    with sqlite_with(tmp_path) as (storage, raw):
        raw.add_job(**{column: value})
        claim = storage.fetch_and_lock_job(fetch())
    assert claim is not None

    terms = processor_of(lambda: None).resolve(claim).terms
    packed = packed_terms(
        method=terms.method, limit=terms.limit, retry=terms.when_killed, max_crashes=terms.max_crashes
    )
    slots.writer(0).show_running(claim.key, since_ns=0, terms=packed)

    shown = slots.read(0)
    assert shown is not None
    assert shown.max_crashes is None


@pytest.mark.parametrize(
    ("column", "value"),
    [("created_at", "now"), ("created_at", 2**62), ("priority", b"high"), ("id", b"x" * 36)],
)
def test_an_sqlite_file_refuses_rows_that_could_not_be_ordered_or_fenced(
    tmp_path: Path, column: str, value: object
) -> None:
    with sqlite_with(tmp_path) as (_, raw), pytest.raises(sqlite3.IntegrityError):
        raw.add_job(**{column: value})


def without_size_limits(raw: Raw) -> None:
    """As the table was made before it had limits."""
    if raw.is_sqlite:
        raw.run("PRAGMA ignore_check_constraints = ON")
        return
    for column in ("payload", "metadata", "result"):
        raw.run(f"ALTER TABLE {{jobs}} DROP CONSTRAINT {column}_is_at_most_1_mib")


@contextmanager
def sqlite_with(tmp_path: Path) -> Iterator[tuple[Storage, Raw]]:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with closing(open_storage(url)) as storage:
        storage.migrate()
        with closing(raw_tables(url, partial(driver_connection, url))) as raw:
            yield storage, raw


BEFORE_ALL_TIME = [pytest.param(-62_167_219_200_000_000, id="year 0"), pytest.param(-(2**63), id="smallest")]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # PostgreSQL's tables refuse it
@pytest.mark.parametrize("instant", BEFORE_ALL_TIME)
def test_a_job_due_before_all_time_holds_up_no_other(storage: Storage, raw: Raw, instant: int) -> None:
    odd, *others = (storage.enqueue(Job.new("work", at=storage.now() + HOUR)) for _ in range(3))
    raw.age("jobs", "run_at", 2 * HOUR)
    raw.run("UPDATE {jobs} SET run_at = ? WHERE id = ?", instant, odd)

    promoted = storage.promote_due(limit=10)

    assert promoted.count == 3
    assert {present(storage, each).state_name for each in (odd, *others)} == {StateName.ENQUEUED}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("instant", BEFORE_ALL_TIME)
def test_a_template_due_before_all_time_holds_up_no_other(storage: Storage, raw: Raw, instant: int) -> None:
    for name in ("odd", "other"):
        template = RecurringJob.new(name, "0 9 * * *", "work")
        storage.upsert_recurring_job(replace(template, next_run_at=storage.now() - HOUR))
    raw.run("UPDATE {recurring_jobs} SET next_run_at = ? WHERE id = 'odd'", instant)

    fired = [storage.fire_due_recurring() for _ in range(2)]

    assert [job.metadata["recurring_id"] for job in fired[0].jobs] == ["other"]
    assert fired[1].jobs == ()
    assert fired[1].next_due_in != timedelta()


@pytest.mark.fault(88)
def test_a_retry_that_began_after_all_time_is_due_at_once_once_the_clock_was_set_back(
    storage: Storage, raw: Raw
) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Retry(error=NO, delay=HOUR), retention=KEEP)
    raw.run("UPDATE {jobs} SET enqueued_at = ?", 2**62 if raw.is_sqlite else "infinity")

    hastened = [storage.hasten_jobs_from_the_future() for _ in range(2)]

    assert hastened == [1, 0]
    assert storage.promote_due(limit=10).count == 1
    assert present(storage, claim).state_name is StateName.ENQUEUED
