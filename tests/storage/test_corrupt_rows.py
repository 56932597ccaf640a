"""Tests of the storage: rows that other programs put into the tables harm nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.outcome import Failure
from qml_mp.core.payload import MAX_PAYLOAD_BYTES
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.storage.conftest import Raw, driver_connection, raw_tables
from tests.storage.helpers import KEEP, NO, fetch, present

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
}

FITS = '"' + "ä" * (MAX_PAYLOAD_BYTES // 2 - 1) + '"'


@pytest.mark.fault(27)
@pytest.mark.fault(29)
@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_job_with_an_unreadable_payload_is_handed_out_and_can_fail(
    storage: Storage, raw: Raw, payload: str
) -> None:
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


@pytest.mark.parametrize("metadata", ["{no json", "[1]"])
def test_unreadable_metadata_reads_as_none_at_all(storage: Storage, raw: Raw, metadata: str) -> None:
    job_id = raw.add_job(metadata=metadata, payload='{"n": 1}')

    job = present(storage, job_id)

    assert (job.metadata, job.payload, job.payload_error) == ({}, {"n": 1}, None)


@pytest.mark.parametrize("column", ["payload", "result"])
def test_the_table_refuses_json_that_is_too_large_and_says_which(
    storage: Storage, raw: Raw, column: str
) -> None:
    raw.add_job(**{column: FITS})

    with pytest.raises(Exception, match=f"{column}_is_at_most_1_mib"):
        raw.add_job(**{column: FITS + " "})


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


ODD_IDS = ("0" * 36, "-" * 36, "0" * 35 + "-", "0-" * 18)


def test_rows_whose_id_is_no_uuid_are_failed_and_hold_up_nobody(
    storage: Storage,
    raw: Raw,
) -> None:
    for job_id in ODD_IDS:
        raw.add_job(id=job_id, priority=5)
    plain = [raw.add_job() for _ in range(3)]

    first = storage.fetch_and_lock_job(fetch())
    assert first is not None
    for job_id in ODD_IDS:
        raw.run("UPDATE {jobs} SET state = 'enqueued' WHERE id = ?", job_id)
    done = storage.exchange([(first, Failure(error=NO))], fetch=fetch(), limit=3, retention=KEEP)

    assert done.finished[0].accepted
    assert {first.job.id, *(claim.job.id for claim in done.claims)} <= set(plain)
    assert len(done.claims) == 2
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
        ("method", b"\xff\0work"),
        ("max_retries", "many"),
        ("timeout_us", 2**62),
        ("unique_key", b"\xff"),
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


@contextmanager
def sqlite_with(tmp_path: Path) -> Iterator[tuple[Storage, Raw]]:
    url = f"sqlite:///{tmp_path}/jobs.db"
    with closing(open_storage(url)) as storage:
        storage.migrate()
        with closing(raw_tables(url, partial(driver_connection, url))) as raw:
            yield storage, raw
