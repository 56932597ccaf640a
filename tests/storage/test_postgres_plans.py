"""Tests of the plans that PostgreSQL makes: what a claim costs must not grow with the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from qml_mp.core.state import StateName
from qml_mp.job_selection import JobSelection
from qml_mp.storage import listing
from qml_mp.storage.database import Values
from qml_mp.storage.listing_queries import AccessPath, Order
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.link import SESSION
from qml_mp.storage.postgres.queries import QUERIES
from qml_mp.storage.postgres.schema import Schema
from qml_mp.storage.postgres.target import parse_target
from qml_mp.storage.queries import ChoiceQueries
from qml_mp.storage.values import BY_DEFAULT, JobFilter
from tests.storage.helpers import in_schema, patient_url

SCHEMA = "plans"
OWN = "plans_of_one"
"""Of a test that has rows of its own."""
EMPTY = "plans_of_none"
"""Of a test that begins without any."""
YEAR = timedelta(days=365)
LOCKS = """
    (resource, owner, expires_at) SELECT {at} || '/' || n, 'a', {at} FROM generate_series(1, {number}) AS n
"""
LOST_ATTEMPTS = """
    (job_id, claim_seq, method, facts, ended_at, due_at, taken_by)
    SELECT {at} || '/' || n, 1, 'work', '', {at}, {at}, 'w' FROM generate_series(1, {number}) AS n
"""
CALLBACKS = """
    (job_id, claim_seq, method, due_at)
    SELECT {at} || '/' || n, 1, 'work', {at} FROM generate_series(1, {number}) AS n
"""
HISTORY = """
    (step_s, begins_at, writer, claims, totals, queues, methods)
    SELECT 60, {at} - interval '9 days', n, 1, '', '', '{{}}' FROM generate_series(1, {number}) AS n
"""
ACTS = """
    (id, what, subject, asked_by, asked_from, asked_at, state)
    SELECT {at} || '/' || n, 'pause queue', 'images', 'anna', 'web', {at}, 'done'
    FROM generate_series(1, {number}) AS n
"""
WHOLE = {
    "older_at": datetime(1, 1, 2, tzinfo=UTC), "older_id": "",
    "newer_at": datetime(9999, 12, 30, tzinfo=UTC), "newer_id": "",
}  # fmt: skip
OWNER = {
    "worker_id": "w",
    "server_id": "s",
    "registered": True,
    "epoch": 0,
    "methods": ["none", "work"],
    "limit": 50,
    "read_at_once": False,
}
CHOICES: list[tuple[ChoiceQueries, dict[str, object], str]] = [
    (QUERIES.claims.from_one, {**OWNER, "queue": "small"}, "jobs_claim_queue"),
    (QUERIES.claims.from_all, OWNER, "jobs_claim_any"),
    (QUERIES.claims.from_all, {**OWNER, "methods": None}, "jobs_claim_any"),
    (QUERIES.claims.from_several, {**OWNER, "queues": ["small", "none", "big"]}, "jobs_claim_queue"),
]
NAMES = ["one queue", "all queues", "all methods", "several queues"]
FINISHED = {
    "claim_seq": [1, 1],
    "result": ["null", None],
    "duration_us": [1, 2],
    "reason": [None, None],
    "held_by": ["w", "w"],
    "ended_channel": "ended",
}
TAKEN = {"methods": ["work"], "worker_id": "w", "lease": timedelta(minutes=1)}
DELETED = {
    "ids": [], "until": datetime(9999, 12, 30, tzinfo=UTC), "states": ["failed"], "reason": "not wanted",
    "ttl": timedelta(hours=1), "ended_channel": "ended",
}  # fmt: skip
FAILED = JobFilter(states=[StateName.FAILED, StateName.AWAITING_RETRY])


@pytest.fixture(scope="module")
def burst(postgres_url: str) -> Iterator[None]:
    """A storage whose statistics are older than a burst of 20,000 runnable jobs, and of as many before them
    that nobody here can run. Made once: it costs many times what all tests ask of it."""
    with _burst(postgres_url, SCHEMA):
        yield


@pytest.fixture
def session(burst: None, postgres_url: str) -> Iterator[psycopg.Connection]:
    """A session beside it. What a test changes is rolled back, so that each finds the rows as they were."""
    with closing(psycopg.connect(postgres_url)) as connection:
        yield connection


@pytest.fixture
def own_session(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A session beside a burst of its own, which the test may change and vacuum."""
    with _burst(postgres_url, OWN) as connection:
        yield connection


@pytest.fixture
def empty_session(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A session beside a storage in which nothing is yet."""
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        with closing(open_storage(in_schema(postgres_url, EMPTY))) as storage:
            storage.migrate()
        yield connection
        connection.execute(f"DROP SCHEMA {EMPTY} CASCADE")


@contextmanager
def _burst(postgres_url: str, schema: str) -> Iterator[psycopg.Connection]:
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        with closing(open_storage(patient_url(in_schema(postgres_url, schema)))) as storage:
            storage.migrate()
        connection.execute(f"ALTER TABLE {schema}.jobs SET (autovacuum_enabled = off)")
        _add_jobs(connection, schema, state="succeeded")
        connection.execute(f"VACUUM ANALYZE {schema}.jobs")
        _add_jobs(connection, schema, state="enqueued")
        _add_jobs(connection, schema, state="enqueued", method="foreign", priority=9)
        _add_worker(connection, schema)
        yield connection
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


def _add_worker(connection: psycopg.Connection, schema: str) -> None:
    connection.execute(
        f"INSERT INTO {schema}.workers (id, server_id, number, host, pid, started_ticks, started_at)"
        " VALUES ('w', 's', 1, 'h', 1, 1, now())"
    )


def _add_jobs(
    connection: psycopg.Connection,
    schema: str,
    *,
    state: str,
    method: str = "work",
    priority: int = 0,
    number: int = 20_000,
) -> None:
    connection.execute(
        f"""
        INSERT INTO {schema}.jobs (id, method, queue, priority, state, created_at)
        SELECT gen_random_uuid()::text, '{method}',
               CASE WHEN n % 100 = 0 THEN 'small' ELSE 'big' END, {priority} + n % 3,
               '{state}', now() - n * interval '1 second'
        FROM generate_series(1, {number}) AS n
        """
    )


@pytest.mark.parametrize(("choice", "params", "index"), CHOICES, ids=NAMES)
def test_a_claim_reads_the_heads_of_its_own_index_whatever_the_statistics_say(
    session: psycopg.Connection, postgres_url: str, choice: ChoiceQueries, params: Values, index: str
) -> None:
    plan = explained(session, postgres_url, choice.one.claim, params)

    assert_only_heads_are_read(plan, index)
    assert max(_rows(line) for line in plan if "Scan using" in line) == 1, plan
    # Of all that it sees, it locks one row, and its worker's.
    locks = [line for line in plan if "LockRows" in line]
    assert sum(_rows(line) for line in locks) == 2, plan
    assert all("loops=1)" in line for line in locks if _rows(line)), plan


@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "planned for all values"])
@pytest.mark.parametrize(("choice", "params", "index"), CHOICES, ids=NAMES)
def test_a_claim_of_several_reads_and_locks_no_more_than_it_takes(
    session: psycopg.Connection,
    postgres_url: str,
    choice: ChoiceQueries,
    params: Values,
    index: str,
    generic: bool,
) -> None:
    held = [
        job_id
        for (job_id,) in session.execute(
            f"UPDATE {SCHEMA}.jobs SET state = 'processing', claim_seq = 1, worker_id = 'w', priority = -1"
            f" WHERE id IN (SELECT id FROM {SCHEMA}.jobs WHERE state = 'enqueued' AND queue = 'small'"
            " AND method = 'work' ORDER BY created_at DESC LIMIT 2) RETURNING id"
        )
    ]
    bound = {**params, **FINISHED, "id": sorted(held), "ttl": timedelta(hours=1)}

    assert choice.several.exchange is not None
    plan = explained(session, postgres_url, choice.several.exchange, bound, generic=generic)

    assert_only_heads_are_read(plan, index)
    # Of the methods `work` and, if it may, `foreign`, in at most two queues; each looked at and then taken.
    assert max(_rows(line) for line in plan if "Scan using" in line) <= 50, plan
    locks = [line for line in plan if "LockRows" in line]
    assert sum(_rows(line) * _loops(line) for line in locks) == 51, plan


@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "planned for all values"])
@pytest.mark.parametrize("before_limited", [False, True], ids=["best", "before a limited one"])
def test_a_claim_beside_limits_reads_what_it_takes_and_looks_once_whether_there_are_new_ones(
    session: psycopg.Connection, postgres_url: str, generic: bool, before_limited: bool
) -> None:
    session.execute(f"INSERT INTO {SCHEMA}.limits (kind, name, paused) VALUES ('queue', 'closed', true)")
    head, *_, limited = session.execute(
        f"SELECT priority, created_at, id FROM {SCHEMA}.jobs WHERE state = 'enqueued' AND queue = 'big'"
        " AND method = 'work' ORDER BY priority DESC, created_at, id LIMIT 21"
    ).fetchall()
    kinds = {
        f"kind_{name}": [value] for name, value in zip(("priorities", "times", "ids"), head, strict=True)
    }
    wanted = {
        **{name: OWNER[name] for name in OWNER if name != "methods"},
        "methods": ["work"],
        "kind_queues": ["big"],
        "kind_methods": ["work"],
        "kind_limits": [],
        "began_at": None,
        "only_priority": head[0] if before_limited else None,
        "until_at": limited[1] if before_limited else None,
        "until_id": limited[2] if before_limited else None,
        **kinds,
    }

    plan = explained(session, postgres_url, QUERIES.claims.of_kinds.claim, wanted, generic=generic)

    scans = [line for line in plan if "Scan using" in line and "never executed" not in line]
    assert _rows(plan[0]) == (20 if before_limited else 50), plan
    assert all(_rows(line) * _loops(line) <= 50 for line in scans), plan
    assert not any("Rows Removed" in line and int(line.split()[-1]) > 1 for line in plan), plan
    assert all(_loops(line) == 1 for line in scans if "limits_pkey" in line), plan
    assert not any("Seq Scan" in line for line in plan if "never executed" not in line), plan


@pytest.mark.parametrize("many", [False, True], ids=["one", "several"])
@pytest.mark.parametrize(("choice", "params", "index"), CHOICES, ids=NAMES)
def test_a_claim_by_a_plan_that_is_older_than_the_jobs_reads_what_it_takes(
    empty_session: psycopg.Connection,
    postgres_url: str,
    choice: ChoiceQueries,
    params: Values,
    index: str,
    many: bool,
) -> None:
    _add_worker(empty_session, EMPTY)
    query = (choice.several if many else choice.one).claim

    plan = planned_when_empty(empty_session, postgres_url, query, params, table="jobs")

    assert_only_heads_are_read(plan, index)
    assert max(_rows(line) for line in plan if " using " in line) <= (50 if many else 1), plan


@pytest.mark.parametrize(
    ("query", "params", "table"),
    [
        (QUERIES.waits.ended, {"ids": []}, "jobs"),
        (QUERIES.bulk.retry, {"ids": [], "until": DELETED["until"], "channel": "c"}, "jobs"),
        (QUERIES.bulk.delete, DELETED, "jobs"),
        (QUERIES.claims.lock, {"ids": []}, "jobs"),
        (QUERIES.failures.note_all, {"ids": []}, "jobs"),
        (
            QUERIES.listing.page(JobFilter(), Order.OLDER, AccessPath(groups=None), False),
            WHOLE | {"limit": 20},
            "jobs",
        ),
        (QUERIES.failures.take, TAKEN, "failure_callbacks"),
        (QUERIES.lost_attempts.take, TAKEN | {"limit": 20}, "lost_attempts"),
        (QUERIES.lost_attempts.end, {"worker_id": "w", "ids": [], "claim_seqs": [1] * 20}, "lost_attempts"),
        (QUERIES.history.forget, {"older_than": timedelta(days=7), "limit": 20}, "history"),
    ],
    ids=["ended", "retried", "deleted", "claims", "noted", "page", "callback", "lost", "told", "history"],
)
def test_what_is_looked_up_by_a_plan_that_is_older_than_the_rows_is_read_alone(
    empty_session: psycopg.Connection, postgres_url: str, query: str, params: Values, table: str
) -> None:
    _add_worker(empty_session, EMPTY)
    empty_session.execute(f"INSERT INTO {EMPTY}.failure_hooks VALUES ('work', true, false)")

    plan = planned_when_empty(empty_session, postgres_url, query, params, table=table)

    read = [_rows(line) * _loops(line) for line in plan if " using " in line and table in line]
    assert 1 <= max(read) <= 20, plan
    assert not any("Rows Removed by Filter" in line for line in plan), plan


@pytest.mark.parametrize(
    "query",
    [QUERIES.monitoring.failure_kinds(FAILED), QUERIES.monitoring.failure_kinds_among(FAILED)],
    ids=["all", "up to a number"],
)
def test_failures_by_kind_are_read_in_their_index_also_by_a_plan_that_is_older_than_they_are(
    empty_session: psycopg.Connection, postgres_url: str, query: str
) -> None:
    since, until = WHOLE["older_at"], WHOLE["newer_at"]
    wanted = {"since": since, "until_time": until, "most": 20, "limit": 50, "newest_first": False}

    plan = planned_when_empty(empty_session, postgres_url, query, wanted, table="jobs")

    scans = [line for line in plan if " using " in line and "never executed" not in line]
    examples = [line for line in scans if "jobs_pkey" in line]
    assert [_rows(line) * _loops(line) for line in examples] == [3], plan
    assert all("jobs_failures" in line for line in scans if line not in examples), plan


def planned_when_empty(
    session: psycopg.Connection, url: str, query: str, params: Values, *, table: str
) -> list[str]:
    """By what plan of before the table was filled the query runs, with 20 ids where it takes some."""
    session.execute(f"ALTER TABLE {EMPTY}.{table} SET (autovacuum_enabled = off)")
    session.execute(f"VACUUM ANALYZE {EMPTY}.{table}")
    run = prepared(session, url, query, params, schema=EMPTY)
    run(params)
    if table == "jobs":
        state = "processing" if query == QUERIES.claims.lock else "failed"
        _add_jobs(session, EMPTY, state="enqueued" if "worker_id" in params else state, number=2000)
        ended = "finished_at = created_at, last_error_key = priority"
        session.execute(f"UPDATE {EMPTY}.jobs SET {ended} WHERE state = 'failed'")
    else:
        rows = {"failure_callbacks": CALLBACKS, "lost_attempts": LOST_ATTEMPTS, "history": HISTORY}[table]
        session.execute(f"INSERT INTO {EMPTY}.{table} {rows.format(number=2000, at='now()')}")
    if "ids" not in params:
        return run(params)
    key = "id" if table == "jobs" else "job_id"
    ids = [row[0] for row in session.execute(f"SELECT {key} FROM {EMPTY}.{table} ORDER BY {key} LIMIT 20")]
    return run({**params, "ids": ids})


def test_who_waits_is_looked_up_by_the_jobs_that_ended_also_where_nobody_waited_when_it_was_counted(
    empty_session: psycopg.Connection, postgres_url: str
) -> None:
    wait = f"INSERT INTO {EMPTY}.waits (job_id, waiter, until) SELECT {{job_id}}, 'a', now()"
    empty_session.execute(wait.format(job_id="gen_random_uuid()"))
    empty_session.execute(f"DELETE FROM {EMPTY}.waits")
    empty_session.execute(f"ANALYZE {EMPTY}.waits")
    empty_session.execute(wait.format(job_id="gen_random_uuid()") + " FROM generate_series(1, 2000)")
    _add_jobs(empty_session, EMPTY, state="processing", number=2)
    empty_session.execute(f"UPDATE {EMPTY}.jobs SET claim_seq = 1, worker_id = 'w'")
    empty_session.execute(wait.format(job_id="id") + f" FROM {EMPTY}.jobs")
    ids = sorted(row[0] for row in empty_session.execute(f"SELECT id FROM {EMPTY}.jobs"))
    ended = {**FINISHED, "id": ids, "ttl": timedelta(hours=1)}

    plan = explained(empty_session, postgres_url, QUERIES.claims.succeed, ended, generic=True, schema=EMPTY)

    assert [_rows(line) for line in plan if "waits_pkey on waits w" in line] == [2], plan


def test_what_is_due_is_counted_without_reading_what_is_due_later(
    session: psycopg.Connection, postgres_url: str
) -> None:
    session.execute(
        f"UPDATE {SCHEMA}.jobs SET state = 'scheduled', run_at = now()"
        " + CASE queue WHEN 'small' THEN interval '-1 hour' ELSE interval '1 hour' END"
        " WHERE state = 'enqueued' AND method = 'work'"
    )
    served: dict[str, object] = {"queues": [], "methods": ["work"]}

    plan = explained(session, postgres_url, QUERIES.monitoring.due_count, served, generic=True)

    assert not any("Seq Scan on jobs" in line and "never executed" not in line for line in plan), plan
    assert [_rows(line) for line in plan if "jobs_due" in line] == [200], plan


def test_what_will_be_due_within_a_time_is_counted_without_reading_what_is_due_after_that(
    session: psycopg.Connection, postgres_url: str
) -> None:
    session.execute(
        f"UPDATE {SCHEMA}.jobs SET state = 'scheduled', run_at = now() + interval '1 hour'"
        " WHERE state = 'enqueued' AND method = 'work' AND queue = 'small'"
    )
    soon: dict[str, object] = {
        "queues": [], "methods": ["work"], "paused": False, "within": timedelta(minutes=1),
    }  # fmt: skip

    plan = explained(session, postgres_url, QUERIES.monitoring.later_work, soon, generic=True)

    assert not any("Seq Scan on jobs" in line and "never executed" not in line for line in plan), plan
    assert [_rows(line) for line in plan if "jobs_due" in line] == [0], plan
    assert not any("Rows Removed" in line for line in plan), plan


@pytest.mark.parametrize("queues", [["small"], ["big", "small"], []])
def test_whether_anything_is_left_to_run_is_known_with_the_first_job(
    session: psycopg.Connection, postgres_url: str, queues: list[str]
) -> None:
    methods = ["foreign", "work"]
    served: dict[str, object] = {
        "queues": queues, "methods": methods, "server_id": "s", "with_waiting": True,
    }  # fmt: skip

    plan = explained(session, postgres_url, QUERIES.monitoring.has_due_work, served, generic=True)

    scans = [line for line in plan if "jobs" in line and "Scan" in line and "never executed" not in line]
    assert sum(_rows(line) for line in scans) == 1, plan
    assert not any("Rows Removed" in line for line in plan), plan


@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "planned for all values"])
def test_queues_are_counted_up_to_a_number_by_a_few_reads_of_an_index(
    session: psycopg.Connection, postgres_url: str, generic: bool
) -> None:
    query = QUERIES.monitoring.queue_stats_among

    plan = explained(session, postgres_url, query, {"most": 101}, generic=generic)

    scans = [line for line in plan if "Scan using" in line and "never executed" not in line]
    # Of two queues 101 each are counted, and ten looked at of each of their methods and priorities.
    assert sum(_rows(line) * _loops(line) for line in scans) <= 2 * 101 + 12 * 10 + 30, plan
    assert not any("Seq Scan" in line for line in plan if "never executed" not in line), plan


@pytest.mark.parametrize("states", [[StateName.SUCCEEDED], [StateName.ENQUEUED]], ids=["ended", "enqueued"])
@pytest.mark.parametrize("method", [None, "work"], ids=["all", "of a method"])
def test_many_jobs_are_counted_and_found_for_a_change_a_bounded_number_at_a_time(
    session: psycopg.Connection,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    states: list[StateName],
    method: str | None,
) -> None:
    monkeypatch.setattr(listing, "_MOST_AT_ONCE", 1000)

    sent, found = walked(postgres_url, SCHEMA, JobFilter(states=states, method=method), monkeypatch)

    assert found == (40_000 if states == [StateName.ENQUEUED] and method is None else 20_000)
    assert_few_are_read_at_a_time(session, postgres_url, SCHEMA, sent, most=1001)


def test_many_failures_of_a_kind_are_found_for_a_change_a_bounded_number_at_a_time(
    own_session: psycopg.Connection, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_MOST_AT_ONCE", 1000)
    own_session.execute(
        f"UPDATE {OWN}.jobs SET state = 'failed', last_error_key = 'k' || priority WHERE state = 'succeeded'"
    )
    own_session.execute(f"VACUUM ANALYZE {OWN}.jobs")

    sent, found = walked(postgres_url, OWN, JobFilter(kind="k1"), monkeypatch)

    assert found == 6667
    assert_few_are_read_at_a_time(own_session, postgres_url, OWN, sent, most=1001)


def walked(
    url: str, schema: str, where: JobFilter, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, dict[str, object]], int]:
    """Count and find all that the filter means; what was sent for it, with the values of the last time, and
    how many there are."""
    sent: dict[str, dict[str, object]] = {}
    with closing(open_storage(in_schema(url, schema))) as storage:
        read = storage._db.read

        def note(what: str, query: str, values: dict[str, object]) -> object:
            sent[query] = values
            return read(what, query, values)

        monkeypatch.setattr(storage._db, "read", note)
        selection = JobSelection(storage, where, retention=BY_DEFAULT)
        counted = selection.count()
        found = [job_id for ids in selection._ids(where.each_state()) for job_id in ids]
    assert len(set(found)) == len(found) == counted
    return sent, counted


def assert_few_are_read_at_a_time(
    session: psycopg.Connection, url: str, schema: str, sent: dict[str, dict[str, object]], *, most: int
) -> None:
    for query, values in sent.items():
        used = {name: value for name, value in values.items() if f"%({name})s" in query}
        plan = explained(session, url, query, used, generic=True, schema=schema)
        session.execute("DEALLOCATE ALL")
        scans = [line for line in plan if "Scan using" in line and "never executed" not in line]
        assert all(_rows(line) * _loops(line) <= most for line in scans), plan
        removed = [int(line.split(":")[1]) for line in plan if "Rows Removed by Filter" in line]
        assert all(number <= most for number in removed), plan
        assert not any("Seq Scan" in line for line in plan), plan


def test_lists_and_counts_of_failures_read_indexes_alone(
    own_session: psycopg.Connection, postgres_url: str
) -> None:
    own_session.execute(
        f"UPDATE {OWN}.jobs SET state = 'failed', last_error_key = priority WHERE state = 'succeeded'"
    )
    own_session.execute(f"VACUUM ANALYZE {OWN}.jobs")
    query = QUERIES.listing.page(JobFilter(), Order.OLDER, AccessPath(groups=None), False)

    listed = explained(own_session, postgres_url, query, WHOLE | {"limit": 51}, generic=True, schema=OWN)
    own_session.execute("DEALLOCATE ALL")
    kinds = explained(
        own_session,
        postgres_url,
        QUERIES.monitoring.failure_kinds(FAILED),
        {"limit": 50, "newest_first": False},
        generic=True,
        schema=OWN,
    )

    assert not any("Seq Scan" in line for line in (*listed, *kinds)), listed
    counted = [line for line in kinds if "Index Only Scan using jobs_failures" in line]
    assert sum(map(_rows, counted)) == 20000, kinds


@pytest.mark.parametrize(
    ("query", "index", "state", "due"),
    [
        (QUERIES.jobs.promote, "jobs_due", "scheduled", "run_at"),
        (QUERIES.jobs.delete_expired, "jobs_expiry", "succeeded", "expires_at"),
    ],
    ids=["promotion", "expiry"],
)
def test_when_a_great_many_are_due_a_batch_of_them_is_read_by_indexes_alone(
    own_session: psycopg.Connection, postgres_url: str, query: str, index: str, state: str, due: str
) -> None:
    own_session.execute(f"UPDATE {OWN}.jobs SET state = '{state}', {due} = created_at")
    own_session.execute(f"VACUUM ANALYZE {OWN}.jobs")
    bound: dict[str, object] = {"limit": 25, "spared": [], "channel": "c"}

    plan = explained(
        own_session,
        postgres_url,
        query,
        {each: bound[each] for each in bound if each in query},
        generic=True,
        schema=OWN,
    )

    assert_only_heads_are_read(plan, index)
    assert max(_rows(line) for line in plan if "Scan using" in line) == 25, plan


@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "planned for all values"])
@pytest.mark.parametrize("is_analyzed", [True, False], ids=["analyzed", "since the statistics"])
@pytest.mark.parametrize(
    ("query", "index"),
    [(QUERIES.jobs.hasten_retries, "jobs_failures"), (QUERIES.jobs.hasten_spread, "jobs_of_template")],
    ids=["retries", "firings"],
)
def test_jobs_from_the_future_are_looked_for_in_an_index_alone(
    own_session: psycopg.Connection,
    postgres_url: str,
    query: str,
    index: str,
    generic: bool,
    is_analyzed: bool,
) -> None:
    own_session.execute(
        f"UPDATE {OWN}.jobs SET state = 'awaiting_retry', run_at = now(), enqueued_at = created_at,"
        " last_error_key = priority WHERE method = 'work'"
    )
    if is_analyzed:
        own_session.execute(f"VACUUM ANALYZE {OWN}.jobs")

    plan = explained(own_session, postgres_url, query, {"channel": "c"}, generic=generic, schema=OWN)

    assert any(index in line for line in plan), plan
    assert not any("Rows Removed by Filter" in line for line in plan), plan


def test_of_expired_jobs_that_are_to_be_told_yet_each_is_read_once(
    own_session: psycopg.Connection, postgres_url: str
) -> None:
    own_session.execute(f"UPDATE {OWN}.jobs SET state = 'failed', expires_at = created_at")
    own_session.execute(
        f"INSERT INTO {OWN}.failure_callbacks (job_id, claim_seq, method, due_at)"
        f" SELECT id, 1, method, now() FROM {OWN}.jobs ORDER BY expires_at LIMIT 100"
    )
    own_session.execute(f"VACUUM ANALYZE {OWN}.jobs")

    query = QUERIES.jobs.delete_expired
    plan = explained(own_session, postgres_url, query, {"limit": 25, "spared": []}, generic=True, schema=OWN)

    assert_only_heads_are_read(plan, "jobs_expiry")
    [calls] = [line for line in plan if "failure_callbacks_pkey" in line]
    assert 100 <= _loops(calls) <= 125, plan


@pytest.mark.parametrize(
    "query", [QUERIES.jobs.delete_expired, QUERIES.jobs.expired], ids=["deleted", "looked for"]
)
def test_expired_jobs_that_are_left_out_are_each_looked_up_and_not_compared_with_each(
    own_session: psycopg.Connection, postgres_url: str, query: str
) -> None:
    own_session.execute(f"UPDATE {OWN}.jobs SET state = 'succeeded', expires_at = created_at")
    own_session.execute(f"VACUUM ANALYZE {OWN}.jobs")
    oldest = own_session.execute(f"SELECT id FROM {OWN}.jobs ORDER BY expires_at LIMIT 5000").fetchall()

    spared = [row[0] for row in oldest]
    plan = explained(
        own_session, postgres_url, query, {"limit": 25, "spared": spared}, generic=True, schema=OWN
    )

    assert_only_heads_are_read(plan, "jobs_expiry")
    assert any("hashed SubPlan" in line for line in plan), plan


@pytest.mark.parametrize("is_counted", [True, False], ids=["as the planner knows", "new to the planner"])
@pytest.mark.parametrize(
    ("query", "bound", "table", "rows", "index"),
    [
        (QUERIES.registry.delete_expired_locks, {}, "locks", LOCKS, "locks_expiry"),
        (QUERIES.lost_attempts.forget, {}, "lost_attempts", LOST_ATTEMPTS, "lost_attempts_ended"),
        (QUERIES.acts.delete_old, {"kept_for": YEAR}, "acts", ACTS, "acts_by_age"),
    ],
    ids=["locks", "lost attempts", "acts"],
)
def test_where_many_are_there_and_few_are_too_old_these_alone_are_read(
    empty_session: psycopg.Connection,
    postgres_url: str,
    query: str,
    bound: dict[str, object],
    table: str,
    rows: str,
    index: str,
    is_counted: bool,
) -> None:
    for number, at in ((20_000, "now() + interval '1 day'"), (30, "now() - interval '2 years'")):
        empty_session.execute(f"INSERT INTO {EMPTY}.{table} {rows.format(number=number, at=at)}")
        if is_counted:
            empty_session.execute(f"ANALYZE {EMPTY}.{table}")

    plan = explained(empty_session, postgres_url, query, bound | {"limit": 20}, generic=True, schema=EMPTY)

    scans = [line for line in plan if "Scan" in line and table in line and "never executed" not in line]
    assert any(index in line for line in scans), plan
    assert all("Index Scan" in line or "Tid Scan" in line for line in scans), plan
    assert all(_rows(line) * _loops(line) <= 20 for line in scans), plan
    assert not any("Rows Removed by Filter" in line for line in plan), plan


def test_waits_are_looked_through_with_the_last_expired_locks_alone(
    empty_session: psycopg.Connection, postgres_url: str
) -> None:
    expired = LOCKS.format(number=30, at="now() - interval '1 day'")
    empty_session.execute(f"INSERT INTO {EMPTY}.locks {expired}")
    query, bound = QUERIES.registry.delete_expired_locks, {"limit": 20}
    delete = prepared(empty_session, postgres_url, query, bound, schema=EMPTY)

    first, last = delete(bound), delete(bound)

    for plan, is_last in ((first, False), (last, True)):
        scans = [line for line in plan if "Scan on waits" in line]
        assert scans, plan
        assert all(("never executed" not in line) is is_last for line in scans), plan


@pytest.mark.parametrize("query", [QUERIES.registry.lock_holder, QUERIES.registry.renew_lock])
def test_a_lock_is_found_by_its_name_also_by_a_plan_that_was_made_while_all_had_expired(
    empty_session: psycopg.Connection, postgres_url: str, query: str
) -> None:
    expired = LOCKS.format(number=100, at="now() - interval '1 day'")
    empty_session.execute(f"INSERT INTO {EMPTY}.locks {expired}")
    empty_session.execute(f"VACUUM ANALYZE {EMPTY}.locks")
    bound = {"resource": "r", "owner": "o", "ttl": YEAR}
    used = {name: bound[name] for name in bound if f"%({name})s" in query}

    plan = explained(empty_session, postgres_url, query, used, generic=True, schema=EMPTY)

    assert [line for line in plan if "Scan" in line and "locks_pkey" not in line] == [], plan


@pytest.mark.parametrize("is_counted", [True, False], ids=["as the planner knows", "new to the planner"])
def test_failure_callbacks_are_looked_through_a_few_at_a_time(
    own_session: psycopg.Connection, postgres_url: str, is_counted: bool
) -> None:
    own_session.execute(
        f"INSERT INTO {OWN}.failure_callbacks (job_id, claim_seq, method, due_at)"
        f" SELECT id, 1, method, now() FROM {OWN}.jobs"
    )
    if is_counted:
        own_session.execute(f"ANALYZE {OWN}.failure_callbacks")
    [(half,)] = own_session.execute(
        f"SELECT job_id FROM {OWN}.failure_callbacks ORDER BY job_id OFFSET 30000 LIMIT 1"
    )
    ids = [
        job_id
        for (job_id,) in own_session.execute(f"SELECT id FROM {OWN}.jobs WHERE state = 'succeeded' LIMIT 20")
    ]
    own_session.execute(f"UPDATE {OWN}.jobs SET state = 'deleted' WHERE id = ANY(%s)", [ids])
    for query, bound in (
        (QUERIES.failures.looked_through, {"after": half, "limit": 20}),
        (QUERIES.failures.forget, {"ids": ids}),
    ):
        plan = explained(own_session, postgres_url, query, bound, generic=True, schema=OWN)
        own_session.execute("DEALLOCATE ALL")

        scans = [line for line in plan if "Scan using" in line]
        assert len(scans) == 2, plan
        assert all("failure_callbacks_pkey" in line or "jobs_pkey" in line for line in scans), plan
        assert all(_rows(line) * _loops(line) <= 20 for line in scans), plan


@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "planned for all values"])
def test_the_newest_jobs_of_templates_are_looked_for_among_their_own_alone(
    own_session: psycopg.Connection, postgres_url: str, generic: bool
) -> None:
    jobs = f"{OWN}.jobs"
    own_session.execute(
        f"UPDATE {jobs} SET recurring_id = 'busy', fire_at = created_at WHERE state = 'succeeded'"
    )
    by_hand = f"SELECT id FROM {jobs} WHERE method = 'foreign' LIMIT 3"
    own_session.execute(f"UPDATE {jobs} SET recurring_id = 'rare' WHERE id IN ({by_hand})")
    own_session.execute(f"VACUUM ANALYZE {jobs}")
    wanted = {"ids": ["busy", "rare", "none"], "limit": 20}

    plan = explained(
        own_session, postgres_url, QUERIES.recurring.newest_jobs, wanted, generic=generic, schema=OWN
    )

    scans = [line for line in plan if "Index Scan" in line]
    assert scans, plan
    assert all("jobs_firing" in line for line in scans), plan
    assert not [line for line in plan if "Seq Scan" in line], plan
    assert max(_rows(line) for line in scans) <= 20, plan


@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "planned for all values"])
def test_what_claims_came_to_is_looked_up_by_their_jobs(
    session: psycopg.Connection, postgres_url: str, generic: bool
) -> None:
    ids = [row[0] for row in session.execute(f"SELECT id FROM {SCHEMA}.jobs LIMIT 100")]
    which: Values = {"ids": ids, "claim_seqs": [1] * 100}

    plan = explained(session, postgres_url, QUERIES.history.recorded, which, generic=generic)

    scans = [line for line in plan if "Scan" in line and "Function Scan" not in line]
    assert [line for line in scans if "Index Scan using jobs_pkey" in line and _loops(line) == 100], plan
    assert all("jobs_pkey" in line or "attempts_pkey" in line for line in scans), plan


@pytest.mark.parametrize("generic", [False, True], ids=["planned for its values", "planned for all values"])
@pytest.mark.parametrize(
    ("query", "bound"),
    [
        (QUERIES.recurring.next_firing, {"methods": None, "lacking": [], "refused": []}),
        (QUERIES.recurring.lock_due, {"methods": None, "lacking": [], "limit": 256}),
        (QUERIES.recurring.unfinished, {"id": "busy"}),
    ],
    ids=["next firing", "due", "one template"],
)
def test_whether_a_job_of_a_template_has_not_ended_is_read_from_its_own_alone(
    own_session: psycopg.Connection, postgres_url: str, query: str, bound: Values, generic: bool
) -> None:
    jobs = f"{OWN}.jobs"
    own_session.execute(f"UPDATE {jobs} SET recurring_id = 'busy' WHERE method = 'work'")
    own_session.execute(
        f"INSERT INTO {OWN}.recurring_jobs"
        " (id, cron, tz, method, payload, queue, overlap, enabled, next_run_at, waiting_for, created_at)"
        " SELECT each, '@daily', 'UTC', 'work', 'null', 'mail', 'queue', true, now() + interval '1 day',"
        " now(), now()"
        " FROM unnest(ARRAY['busy', 'idle', 'waits']) AS each"
    )
    own_session.execute(f"VACUUM ANALYZE {jobs}")

    plan = explained(own_session, postgres_url, query, bound, generic=generic, schema=OWN)

    conditions = [plan[place + 1] for place, line in enumerate(plan) if "jobs_of_template" in line]
    assert conditions, plan
    assert all("Index Cond: (recurring_id = " in line for line in conditions), plan
    assert not [line for line in plan if "Rows Removed" in line and int(line.split(": ")[1]) > 3], plan


def explained(
    session: psycopg.Connection,
    url: str,
    statement: str,
    params: Values,
    *,
    generic: bool = False,
    schema: str = SCHEMA,
) -> list[str]:
    """The plan by which the statement was run."""
    if generic:
        return prepared(session, url, statement, params, schema=schema)(params)
    text = _text(session, url, statement, schema)
    explain = session.execute(b"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + text, params)
    return [line for (line,) in explain]


def prepared(
    session: psycopg.Connection, url: str, statement: str, params: Values, *, schema: str
) -> Callable[[Values], list[str]]:
    """Runs the statement with the values that it is given, and tells the plan, which is made once."""
    text = _text(session, url, statement, schema).decode()
    used = [name for name in params if f"%({name})s" in text]
    literals = ", ".join(["%s"] * len(used))
    with closing(psycopg.ClientCursor(session)) as cursor:
        names = {name: f"${number}" for number, name in enumerate(used, 1)}
        cursor.execute(f"PREPARE generic AS {text % names}".encode())

    def run(values: Values) -> list[str]:
        explain = f"EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) EXECUTE generic ({literals})"
        with closing(psycopg.ClientCursor(session)) as cursor:
            cursor.execute(explain.encode(), [values[name] for name in used])
            return [line for (line,) in cursor]

    return run


def _text(session: psycopg.Connection, url: str, statement: str, schema: str) -> bytes:
    """The statement as it is sent, for which the session is set up."""
    for name, value in SESSION.items():
        session.execute("SELECT set_config(%s, %s, false)", [name, value])
    return Schema(parse_target(in_schema(url, schema))).statement(statement)


def assert_only_heads_are_read(plan: list[str], index: str) -> None:
    scans = [line.strip() for line in plan if "Scan using" in line]
    assert any(index in line for line in scans), plan
    known = (index, "jobs_pkey", "workers_pkey", "limits_pkey", "waits_pkey", "failure_callbacks_pkey")
    assert all(any(name in line for name in known) for line in scans), plan
    assert all(_rows(line) == 0 for line in scans if "limits_pkey" in line or "waits_pkey" in line), plan
    assert not any("Bitmap" in line or "Seq Scan" in line for line in plan), "\n".join(plan)


def _rows(line: str) -> int:
    """How many rows a line of a plan says it gave, each time; PostgreSQL 18 says "1.00"."""
    return int(line.partition("rows=")[2].split(".")[0].split()[0]) if "rows=" in line else 0


def _loops(line: str) -> int:
    """How many times a line of a plan says it ran."""
    return int(line.partition("loops=")[2].split(")")[0]) if "loops=" in line else 0
