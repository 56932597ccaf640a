"""Tests of what SQLite does for a statement: it must not grow with the table."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from qml_mp.clock import SystemClock
from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind
from qml_mp.core.state import StateName
from qml_mp.storage import listing
from qml_mp.storage.left_out import LeftOut
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, JobFilter
from tests.storage.helpers import DONE, KEEP, fetch, in_an_hour, open_sqlite, set_limit, sqlite_connection

FEW, MANY = 200, 5000
ENQUEUED = StateName.ENQUEUED
NUMBERS = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :number)"
LOCKS = f"INSERT INTO qml_locks (resource, owner, expires_at) {NUMBERS} SELECT 'lock-' || n, 'a', :at FROM n"
ACTS = f"""
    INSERT INTO qml_acts (id, what, subject, asked_by, asked_from, asked_at, state)
    {NUMBERS} SELECT 'act-' || n, 'pause queue', 'images', 'anna', 'web', :at, 'done' FROM n
"""
LOST_ATTEMPTS = f"""
    INSERT INTO qml_lost_attempts (job_id, claim_seq, method, facts, ended_at, due_at)
    {NUMBERS} SELECT 'job-' || n, 1, 'work', '{{}}', :at, :at FROM n
"""
HISTORY = f"""
    INSERT INTO qml_history (step_s, begins_at, writer, claims, totals, queues, methods)
    {NUMBERS} SELECT 60, :at, 'server#' || n, 1, '{{}}', '{{}}', '{{}}' FROM n
"""
YEAR = timedelta(days=365)
CLEANUP: list[tuple[str, str, str, Callable[[Storage], int]]] = [
    ("locks", LOCKS, "expires_at", lambda storage: storage.delete_expired_locks(limit=20)),
    (
        "lost_attempts",
        LOST_ATTEMPTS,
        "ended_at",
        lambda storage: storage.forget_lost_attempts(limit=20),
    ),
    ("acts", ACTS, "asked_at", lambda storage: storage.delete_old_acts(kept_for=YEAR, limit=20)),
    ("history", HISTORY, "begins_at", lambda storage: storage.forget_history(older_than=YEAR, limit=20)),
]


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    storage = open_sqlite(tmp_path / "jobs.db")
    yield storage
    storage.close()


@contextmanager
def steps_counted(storage: Storage, *, with_the_lock: bool = False) -> Iterator[list[int]]:
    """One number, of the steps that SQLite's virtual machine takes in the block; or only of those within
    transactions that hold the write lock."""
    steps = [0]

    with sqlite_connection(storage).read() as connection:

        def step() -> None:
            steps[0] += not with_the_lock or connection.in_transaction

        connection.set_progress_handler(step, 1)
    yield steps
    with sqlite_connection(storage).read() as connection:
        connection.set_progress_handler(None, 0)


def add(storage: Storage, number: int, *, state: StateName, queue: str, method: str) -> None:
    """So many jobs that are older and, when they wait, better than those that a test has enqueued."""
    with sqlite_connection(storage).write() as connection:
        connection.execute(
            """
            INSERT INTO qml_jobs (
                id, method, queue, priority, state, payload, created_at, enqueued_at, expires_at)
            WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :number)
            SELECT lower(printf('%s-0000-4000-8000-%012x', hex(randomblob(4)), n)), :method, :queue,
                   iif(:state = 'enqueued', 9, 0), :state, '{}', n, n, iif(:state = 'enqueued', NULL, 1e16)
            FROM n
            """,
            {"number": number, "method": method, "queue": queue, "state": str(state)},
        )


def steps_of_exchanges(storage: Storage, which: Fetch, limit: int) -> int:
    """Of one that writes and claims so many."""
    storage.enqueue_many(Job.new("work") for _ in range(3 * limit))
    held = storage.exchange((), fetch=which, limit=limit, retention=KEEP).claims
    with steps_counted(storage) as steps:
        done = storage.exchange([(claim, DONE) for claim in held], fetch=which, limit=limit, retention=KEEP)
    assert len(done.claims) == limit
    return steps[0]


def test_what_it_costs_to_read_what_claims_came_to_does_not_grow_with_the_table(storage: Storage) -> None:
    storage.enqueue_many(Job.new("work") for _ in range(50))
    claims = storage.exchange((), fetch=fetch(), limit=50, retention=KEEP).claims
    storage.exchange([(claim, DONE) for claim in claims], fetch=None, limit=0, retention=KEEP)
    steps = []
    for number in (FEW, MANY):
        add(storage, number, state=StateName.SUCCEEDED, queue="default", method="work")
        with steps_counted(storage) as counted:
            assert len(storage.recorded_claims([claim.key for claim in claims])) == 50
        steps += counted

    assert steps[1] <= 1.1 * steps[0]


@pytest.mark.parametrize("limit", [1, 50])
@pytest.mark.parametrize("queues", [(), ("default",), ("default", "more")], ids=["all", "one", "several"])
@pytest.mark.parametrize(
    ("state", "queue", "method"),
    [
        (ENQUEUED, "default", "work"),
        (ENQUEUED, "other", "foreign"),
        (ENQUEUED, "default", "foreign"),
        (StateName.SUCCEEDED, "default", "work"),
    ],
    ids=["served", "in another queue", "of methods that nobody here knows", "ended"],
)
def test_what_an_exchange_costs_does_not_grow_with_the_table(
    storage: Storage, state: StateName, queue: str, method: str, queues: tuple[str, ...], limit: int
) -> None:
    which = replace(fetch(*queues), methods=("work",))
    add(storage, FEW, state=state, queue=queue, method=method)
    among_few = steps_of_exchanges(storage, which, limit)
    add(storage, MANY, state=state, queue=queue, method=method)

    among_many = steps_of_exchanges(storage, which, limit)

    assert among_many <= 1.1 * among_few


@pytest.mark.parametrize("beside", ["nothing", "a limit", "a limited job that may begin"])
@pytest.mark.parametrize("limit", [1, 50])
@pytest.mark.parametrize("queues", [(), ("default",), ("default", "more")], ids=["all", "one", "several"])
def test_nor_when_two_methods_wait(
    storage: Storage, queues: tuple[str, ...], limit: int, beside: str
) -> None:
    which = replace(fetch(*queues), methods=("work", "zeal"))
    if beside == "a limit":
        storage.set_paused("elsewhere", True)
    if beside == "a limited job that may begin":
        set_limit(storage, LimitKind.METHOD, "zeal", max_running=1)
    storage.enqueue(Job.new("zeal", priority=9 if beside == "a limited job that may begin" else -1))
    add(storage, FEW, state=ENQUEUED, queue="default", method="work")
    among_few = steps_of_exchanges(storage, which, limit)
    add(storage, MANY, state=ENQUEUED, queue="default", method="work")

    among_many = steps_of_exchanges(storage, which, limit)

    assert among_many <= 1.1 * among_few


def test_where_something_may_be_claimed_costs_the_same_however_many_wait(storage: Storage) -> None:
    def steps_with(number: int) -> int:
        add(storage, number, state=ENQUEUED, queue="default", method="work")
        add(storage, 1, state=ENQUEUED, queue="more", method="work")
        with steps_counted(storage) as steps:
            assert storage.openings(()).jobs
        return steps[0]

    few, many = steps_with(FEW), steps_with(MANY)
    assert many <= 1.1 * few


def test_a_claim_beside_a_limit_costs_in_proportion_to_the_queues_that_wait(storage: Storage) -> None:
    storage.set_paused("elsewhere", True)

    def steps_with(first: int, end: int) -> int:
        storage.enqueue_many(Job.new("work", queue=f"of-{number}") for number in range(first, end))
        with steps_counted(storage) as steps:
            assert storage.exchange((), fetch=fetch(), limit=1, retention=KEEP).claims
        return steps[0]

    few, many = steps_with(0, 100), steps_with(100, 400)
    assert many <= 5 * few


@pytest.mark.parametrize("state", [StateName.SUCCEEDED, StateName.FAILED, StateName.DELETED])
def test_a_page_of_ended_jobs_costs_the_same_however_many_there_are(
    storage: Storage, state: StateName
) -> None:
    steps_of: list[int] = []
    storage.migrate()
    for number in (FEW, MANY):
        add(storage, number, state=state, queue="default", method="work")
        with steps_counted(storage) as steps:
            assert len(storage.list_jobs(JobFilter(states=[state]), limit=20).jobs) == 20
        steps_of.append(steps[0])

    assert steps_of[1] <= 1.1 * steps_of[0]


@pytest.mark.parametrize("state", [StateName.SUCCEEDED, StateName.FAILED, ENQUEUED])
def test_a_look_for_jobs_to_change_costs_the_same_however_many_there_are(
    storage: Storage, state: StateName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_AT_ONCE", 50)
    where, until = JobFilter(states=[state], method="work"), storage.now()
    steps_of: list[int] = []
    storage.migrate()
    for number in (FEW, MANY):
        add(storage, number, state=state, queue="default", method="work")
        found = storage.job_ids(where, until=until)
        with steps_counted(storage) as steps:
            found = storage.job_ids(where, until=until, rest=found.rest)
        assert len(found.ids) in (50, 51)
        steps_of.append(steps[0])

    assert steps_of[1] <= 1.1 * steps_of[0]


@pytest.mark.parametrize(
    "read",
    [
        lambda storage: storage.queue_stats(among=100),
        lambda storage: storage.method_stats(among=100),
        lambda storage: storage.list_jobs(JobFilter(states=[ENQUEUED], error="x"), limit=20, among=100),
    ],
    ids=["queues", "methods", "jobs"],
)
def test_what_is_read_of_waiting_jobs_up_to_a_number_costs_the_same_however_many_wait(
    storage: Storage, read: Callable[[Storage], object]
) -> None:
    steps_of: list[int] = []
    storage.migrate()
    for number in (FEW, MANY):
        for queue, method in product(("a", "b", "c"), ("read", "work")):
            add(storage, number, state=ENQUEUED, queue=queue, method=method)
        with steps_counted(storage) as steps:
            read(storage)
        steps_of.append(steps[0])

    assert steps_of[1] <= 1.1 * steps_of[0]


def test_younger_jobs_of_a_method_that_nobody_knows_keep_nobody_from_the_lock(storage: Storage) -> None:
    hour_ago = storage.now() - timedelta(hours=1)

    def steps_with(number: int) -> int:
        storage.enqueue_many(Job.new("gone") for _ in range(number))
        add(storage, 1, state=ENQUEUED, queue="default", method="gone")
        with steps_counted(storage, with_the_lock=True) as steps:
            failed = storage.fail_unknown("gone", queues=(), waiting_since=hour_ago, retention=KEEP)
        assert len(failed) == 1
        return steps[0]

    few, many = steps_with(FEW), steps_with(MANY)
    assert many <= 1.1 * few


def test_what_failures_cost_to_count_is_little_beside_reading_them(storage: Storage) -> None:
    storage.migrate()
    add(storage, MANY, state=StateName.FAILED, queue="default", method="work")

    with steps_counted(storage) as steps:
        assert [kind.count for kind in storage.failure_kinds()] == [MANY]
    counted = steps[0]
    with steps_counted(storage) as steps:
        assert storage.failure_kinds(JobFilter(method="work"))[0].count == MANY

    assert counted < 20 * MANY
    assert counted < steps[0]


def test_expired_jobs_are_deleted_without_reading_the_calls_for_others(storage: Storage) -> None:
    def steps_with(calls: int) -> int:
        with sqlite_connection(storage).write() as connection:
            connection.execute("DELETE FROM qml_failure_callbacks")
            connection.execute(
                """
                INSERT INTO qml_failure_callbacks (job_id, claim_seq, method, due_at)
                WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :number)
                SELECT 'job-' || n, 1, 'work', 9e15 FROM n
                """,
                {"number": calls},
            )
            connection.execute(
                "UPDATE qml_jobs SET expires_at = 1 WHERE rowid IN ("
                "SELECT rowid FROM qml_jobs WHERE state = 'failed' LIMIT 25)"
            )
        with steps_counted(storage) as steps:
            assert storage.delete_expired_jobs(limit=25) == 25
        return steps[0]

    add(storage, FEW, state=StateName.FAILED, queue="default", method="work")
    few, many = steps_with(FEW), steps_with(MANY)

    assert many <= 1.5 * few


def test_expired_jobs_of_which_one_is_refused_are_deleted_without_reading_the_rest(storage: Storage) -> None:
    def steps_among(number: int) -> int:
        add(storage, number, state=StateName.FAILED, queue="default", method="work")
        with sqlite_connection(storage).write() as connection:
            connection.execute("UPDATE qml_jobs SET expires_at = 1 WHERE rowid % 10 = 0 AND rowid <= 200")
            connection.execute(
                "CREATE TRIGGER no BEFORE DELETE ON qml_jobs WHEN OLD.rowid = 100 "
                "BEGIN SELECT RAISE(ABORT, 'not this'); END"
            )
        with steps_counted(storage) as steps:
            assert storage.delete_expired_jobs(limit=25, left_out=LeftOut(SystemClock())) == 19
        with sqlite_connection(storage).write() as connection:
            connection.execute("DROP TRIGGER no")
            connection.execute("DELETE FROM qml_jobs")
        return steps[0]

    storage.migrate()
    few, many = steps_among(FEW), steps_among(MANY)

    assert many <= 1.5 * few


@pytest.mark.parametrize(
    ("table", "insert", "column", "clean"), CLEANUP, ids=[table for table, *_ in CLEANUP]
)
def test_what_is_too_old_is_deleted_without_reading_the_rest(
    storage: Storage, table: str, insert: str, column: str, clean: Callable[[Storage], int]
) -> None:
    storage.migrate()

    def steps_among(number: int) -> list[int]:
        steps_of = []
        with sqlite_connection(storage).write() as connection:
            connection.execute(f"DELETE FROM qml_{table}")
            connection.execute(insert, {"number": number, "at": 9_000_000_000_000_000})
            connection.execute(f"UPDATE qml_{table} SET {column} = 1 WHERE rowid > {number - 30}")
        for deleted in (20, 10, 0):
            with steps_counted(storage) as steps:
                assert clean(storage) == deleted
            steps_of.append(steps[0])
        return steps_of

    few, many = steps_among(FEW), steps_among(MANY)

    assert all(more <= 1.5 * less for less, more in zip(few, many, strict=True))


@pytest.mark.parametrize("clean", [clean for *_, clean in CLEANUP], ids=[table for table, *_ in CLEANUP])
def test_where_nothing_is_too_old_nobody_waits_for_the_look(
    storage: Storage, tmp_path: Path, clean: Callable[[Storage], int]
) -> None:
    storage.migrate()
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        assert clean(storage) == 0


def test_failure_callbacks_are_looked_through_without_reading_the_rest(storage: Storage) -> None:
    def steps_among(number: int) -> int:
        with sqlite_connection(storage).write() as connection:
            connection.execute("DELETE FROM qml_failure_callbacks")
            connection.execute(
                f"""
                INSERT INTO qml_failure_callbacks (job_id, claim_seq, method, due_at)
                {NUMBERS} SELECT printf('job-%05d', n), 1, 'work', 9e15 FROM n
                """,
                {"number": number},
            )
        with steps_counted(storage) as steps:
            look = storage.forget_failure_callbacks(limit=20, after="job-00100")
        assert (look.deleted, look.rest) == (20, "job-00120")
        return steps[0]

    add(storage, FEW, state=StateName.FAILED, queue="default", method="work")
    few, many = steps_among(FEW), steps_among(MANY)

    assert many <= 1.5 * few


def test_what_will_be_due_within_a_time_is_counted_without_reading_what_is_due_after_that(
    storage: Storage,
) -> None:
    def steps_among(number: int) -> int:
        storage.enqueue_many(Job.new("work", at=in_an_hour()) for _ in range(number))
        with steps_counted(storage) as steps:
            later = storage.later_work([], methods=["work"], paused=False, within=timedelta(minutes=1))
        assert later.count == 1
        return steps[0]

    storage.enqueue(Job.new("work", at=datetime.now(UTC) + timedelta(seconds=50)))
    few, many = steps_among(FEW), steps_among(MANY)

    assert many <= 1.1 * few
