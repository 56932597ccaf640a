"""Tests of the storage and the loop on it: expired jobs are deleted in small batches, each wholly or not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from itertools import count

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.store import Storage
from tests import failpoints
from tests.storage.conftest import Raw
from tests.storage.helpers import (
    DONE,
    KEEP,
    before_query,
    claim_new,
    fetch,
    in_children,
    interrupt,
    job_in,
    open_patiently,
)

EXPIRED = 6
LIMIT = 4


def expire(storage: Storage, raw: Raw, number: int) -> None:
    """So many jobs that have ended and expired, each with an attempt."""
    for _ in range(number):
        job_in(storage, StateName.FAILED)
    raw.age("jobs", "expires_at", timedelta(days=1))


def left(raw: Raw) -> tuple[int, int]:
    """How many jobs there are, and how many attempts."""
    [(jobs,)], [(attempts,)] = (raw.run(f"SELECT count(*) FROM {{{each}}}") for each in ("jobs", "attempts"))
    return jobs, attempts


def committed(raw: Raw, action: str) -> str:
    """The failpoint behind the commit of a batch; on SQLite a look comes before."""
    return f"storage.committed={action}:{2 if raw.is_sqlite else 1}"


def test_interrupted_before_any_of_its_queries_a_batch_has_deleted_nothing(
    storage: Storage, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire(storage, raw, EXPIRED)

    for number in count(1):
        with monkeypatch.context() as patched:
            until_then = before_query(storage, number, interrupt, patched)
            try:
                deleted = storage.delete_expired_jobs(limit=LIMIT)
                break
            except StorageUnavailable:
                assert until_then() == 0
        assert left(raw) == (EXPIRED, EXPIRED)

    assert number > 1
    assert deleted == LIMIT
    assert left(raw) == (EXPIRED - LIMIT, EXPIRED - LIMIT)


@pytest.mark.parametrize("failpoint", ["before the query", "after the commit"])
def test_a_supervisor_that_is_killed_while_it_deletes_leaves_whole_jobs_and_the_next_goes_on(
    url: str, storage: Storage, raw: Raw, monkeypatch: pytest.MonkeyPatch, failpoint: str
) -> None:
    expire(storage, raw, EXPIRED)
    storage.close()

    def delete() -> None:
        with closing(open_patiently(url)) as mine:
            if failpoint == "after the commit":
                failpoints.arm(committed(raw, "kill"))
            else:
                before_query(mine, 1, lambda: os.kill(os.getpid(), signal.SIGKILL), monkeypatch)
            mine.delete_expired_jobs(limit=LIMIT)

    [status] = in_children([delete])

    assert os.WTERMSIG(status) == signal.SIGKILL
    is_committed = failpoint == "after the commit"
    assert left(raw) == ((EXPIRED - LIMIT,) * 2 if is_committed else (EXPIRED,) * 2)
    assert storage.delete_expired_jobs(limit=100) == (EXPIRED - LIMIT if is_committed else EXPIRED)
    assert left(raw) == (0, 0)


def test_a_reply_that_is_lost_is_no_reason_not_to_go_on(storage: Storage, raw: Raw) -> None:
    expire(storage, raw, EXPIRED)
    failpoints.arm(committed(raw, "raise"))
    try:
        with pytest.raises(StorageUnavailable):
            storage.delete_expired_jobs(limit=LIMIT)
    finally:
        failpoints.arm("")

    assert storage.delete_expired_jobs(limit=100) == EXPIRED - LIMIT
    assert left(raw) == (0, 0)


def test_jobs_flow_while_others_are_deleted(url: str, storage: Storage, raw: Raw) -> None:
    expire(storage, raw, 40)
    ids = storage.enqueue_many(Job.new("new", queue="new") for _ in range(200))
    storage.close()

    def delete() -> None:
        with closing(open_patiently(url)) as mine:
            while mine.delete_expired_jobs(limit=2):
                pass

    def work(name: str) -> Callable[[], None]:
        def until_there_is_nothing() -> None:
            with closing(open_patiently(url)) as mine:
                which = fetch("new", worker=name)
                while held := mine.exchange((), fetch=which, limit=3, retention=KEEP).claims:
                    mine.exchange([(claim, DONE) for claim in held], fetch=None, limit=0, retention=KEEP)

        return until_there_is_nothing

    statuses = in_children([delete, delete, work("w-1"), work("w-2")])

    assert statuses == [0] * 4
    assert left(raw) == (200, 0)
    states = {job.state_name for job in map(storage.get, ids) if job is not None}
    assert states == {StateName.SUCCEEDED}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_file_reuses_the_space_of_what_was_deleted(url: str, storage: Storage, raw: Raw) -> None:
    def fill_and_delete() -> int:
        claim = claim_new(storage)
        storage.finish(claim, DONE, retention=KEEP)
        storage.enqueue_many(Job.new("work", {"text": "x" * 2000}) for _ in range(200))
        raw.run("UPDATE {jobs} SET state = 'succeeded', expires_at = 1")
        while storage.delete_expired_jobs(limit=100):
            pass
        raw.run("PRAGMA wal_checkpoint(TRUNCATE)")
        return os.path.getsize(url.removeprefix("sqlite:///"))

    first, *others = (fill_and_delete() for _ in range(4))

    assert max(others) <= 1.1 * first


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_job_that_somebody_keeps_locked_keeps_no_other_from_being_deleted(
    storage: Storage, raw: Raw, connect: Callable[[], object]
) -> None:
    expire(storage, raw, EXPIRED)
    other = connect()
    other.execute(f"SELECT id FROM {raw.name('jobs')} ORDER BY expires_at LIMIT 1 FOR UPDATE")  # type: ignore[attr-defined]

    assert storage.delete_expired_jobs(limit=100) == EXPIRED - 1
    other.rollback()  # type: ignore[attr-defined]
    assert storage.delete_expired_jobs(limit=100) == 1
