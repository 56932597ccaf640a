"""Tests of the storage: a process killed at every statement leaves no half of anything in an SQLite file."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import Failure, Retry
from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.store import Storage
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    NO,
    fetch,
    finish_and_fetch,
    in_an_hour,
    in_children,
    open_sqlite,
    sqlite_connection,
)

MOST_STATEMENTS = 500
JOBS = 120  # more than one statement writes


# Ten seconds on a busy machine: a process for each of its statements.
@pytest.mark.fault(3)
def test_a_process_killed_at_any_statement_leaves_whole_transactions_only(tmp_path: Path) -> None:
    for number in range(1, MOST_STATEMENTS):
        path = tmp_path / f"{number}.db"
        open_sqlite(path).migrate()

        [status] = in_children([partial(work_until, path, number)])

        assert status in (0, signal.SIGKILL)
        assert_whole(path)
        if status == 0:
            break
    assert status == 0, "the work never came to its end"
    assert number > 50  # it was killed at every one of its statements before


def work_until(path: Path, statement: int) -> None:
    """Do some of everything, and die before the statement of this number."""
    storage = open_sqlite(path)
    left = statement

    def count_down(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with sqlite_connection(storage).read() as connection:
        connection.set_trace_callback(count_down)
    work(storage)


def work(storage: Storage) -> None:
    """Transactions of several statements each."""
    storage.enqueue_many(Job.new("work", queue="three") for _ in range(JOBS))
    first = storage.fetch_and_lock_job(fetch("three"))
    assert first is not None
    second = finish_and_fetch(storage, first, Failure(error=NO), fetch("three"))[1]
    assert second is not None
    third = finish_and_fetch(storage, second, Retry(error=NO, delay=HOUR), fetch("three"))[1]
    assert third is not None
    storage.requeue_stranded_jobs(in_an_hour())
    template = RecurringJob.new("daily", "0 0 9 * * *", "work", queue="recurring")
    storage.upsert_recurring_job(template)
    storage.set_recurring_enabled("daily", True, next_run_at=datetime(2026, 1, 1, tzinfo=UTC))
    storage.fire_due_recurring()
    storage.acquire_lock("cleanup", "a", HOUR)
    claim = storage.fetch_and_lock_job(fetch("recurring"))
    assert claim is not None
    storage.finish(claim, DONE, retention=KEEP)
    storage.reclaim_server("server#1", silent_for=None)


def assert_whole(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:

        def number(query: str) -> int:
            return int(connection.execute(f"SELECT count(*) FROM {query}").fetchone()[0])

        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert number("qml_jobs WHERE queue = 'three'") in (0, JOBS)
        # An attempt and the change of its job are one commit.
        failures = connection.execute("SELECT coalesce(sum(failures), 0) FROM qml_jobs").fetchone()[0]
        assert number("qml_attempts") == failures
        # So are a finish and the claim of the next job: at most the third is running.
        assert number("qml_jobs WHERE state = 'processing'") <= 1
        assert number("qml_jobs WHERE state = 'processing' AND worker_id IS NULL") == 0
        assert number("qml_jobs WHERE state <> 'processing' AND worker_id IS NOT NULL") == 0
        # So are the job of a firing and the template's move past it.
        fired = number("qml_recurring_jobs WHERE last_run_at IS NOT NULL")
        assert number("qml_jobs WHERE recurring_id IS NOT NULL") == fired
