"""Tests of the PostgreSQL backend behind a real PgBouncer, which gives each transaction any session."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import pq

from qml_mp import QmlApp, ServerConfig
from qml_mp.core.job import Job
from qml_mp.core.outcome import Retry
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.link import LinkOptions, open_link
from qml_mp.storage.postgres.target import parse_target
from qml_mp.storage.store import Storage
from tests.pgbouncer import PgBouncer, PgBouncerError, pgbouncer
from tests.processes.harness import wait_until
from tests.storage.claimer import FETCH, register
from tests.storage.helpers import DONE, HOUR, KEEP, NO, in_schema, patient_url

SCHEMA = "pooled"
SETTINGS = ("enable_seqscan", "lock_timeout", "statement_timeout", "plan_cache_mode", "client_min_messages")

pytestmark = pytest.mark.usefixtures("time_for_work")


@pytest.fixture(scope="module")
def pooler(postgres_url: str) -> Iterator[PgBouncer]:
    """One with a single session, so that all its clients share that."""
    try:
        with pgbouncer(postgres_url, pool_size=1) as running:
            yield running
    except PgBouncerError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A connection that goes to the server itself; the schema of the test goes with it."""
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        yield connection
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


@pytest.fixture
def url(postgres_url: str, pooler: PgBouncer, admin: psycopg.Connection) -> str:
    """By the way of the pooler."""
    return in_schema(pooler.before(postgres_url), SCHEMA)


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    with closing(open_storage(patient_url(url), patience=timedelta(milliseconds=200))) as opened:
        opened.migrate()
        yield opened


def session(url: str) -> tuple[object, ...]:
    """What another client finds in the session of the pool: settings, and prepared statements."""
    with closing(psycopg.connect(url.partition("?")[0], autocommit=True)) as other:
        settings = ", ".join(f"current_setting('{name}')" for name in SETTINGS)
        row = other.execute(f"SELECT {settings}, (SELECT count(*) FROM pg_prepared_statements)").fetchone()
    assert row is not None
    return row


def test_clients_share_a_session_and_leave_nothing_in_it(storage: Storage, url: str) -> None:
    before = session(url)
    with closing(open_storage(url)) as other:
        register(storage)
        ids = storage.enqueue_many(Job.new("work", number) for number in range(60))
        assert other.enqueue(Job.new("work", unique_key="one")) not in ids
        for _ in range(10):  # longer than the driver takes to prepare what it sends again and again
            claim = storage.fetch_and_lock_job(FETCH)
            assert claim is not None
            assert other.finish(claim, DONE, retention=KEEP).accepted
            assert other.heartbeat_server("nobody", worker_rss={}) is None
        claim = storage.fetch_and_lock_job(FETCH)
        assert claim is not None
        assert other.finish(claim, Retry(error=NO, delay=HOUR), retention=KEEP).accepted

        counts = other.job_counts()

    assert (counts[StateName.SUCCEEDED], counts[StateName.ENQUEUED]) == (10, 50)
    assert session(url) == before


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("SELECT 1", None),
        (f"SELECT '{'x' * 5_000_000}'", None),  # more than goes out at once
        ("SELECT 1/0", psycopg.errors.DivisionByZero),
    ],
    ids=["short", "long", "refused"],
)
def test_nothing_is_sent_after_the_end_of_a_transaction(
    url: str, statement: str, error: type[psycopg.Error] | None, tmp_path: Path
) -> None:
    """The pooler would find a session for it, and keep that for a client which has nothing to do."""
    options = LinkOptions(application_name="qml-mp", patience=timedelta(seconds=5))
    with closing(open_link(parse_target(url), options)) as link:
        with (tmp_path / "messages").open("w") as messages:
            link.pgconn.trace(messages.fileno())
            link.pgconn.set_trace_flags(pq.Trace.SUPPRESS_TIMESTAMPS)
            with nullcontext() if error is None else pytest.raises(error), link.pipeline():
                link.begin()
                cursor = link.execute(statement)
                link.execute("COMMIT")
            link.pgconn.untrace()
        assert link.pgconn.pipeline_status == pq.PipelineStatus.OFF
        assert error is not None or cursor.fetchone() is not None
    sent = re.findall(r"^F\t\d+\t(\w+)", (tmp_path / "messages").read_text(), re.MULTILINE)
    assert sent.count("Sync") == 1
    assert sent[-1] == "Sync"


def test_a_lock_is_waited_for_no_longer_than_the_patience(
    storage: Storage, admin: psycopg.Connection
) -> None:
    storage.enqueue(Job.new("work"))
    with admin.transaction():
        admin.execute(f"LOCK TABLE {SCHEMA}.jobs IN ACCESS EXCLUSIVE MODE")

        with pytest.raises(StorageUnavailable, match="lock timeout"):
            storage.fetch_and_lock_job(FETCH)

    assert storage.enqueue(Job.new("work"))


def test_a_session_of_the_pool_that_is_terminated_is_replaced(
    storage: Storage, admin: psycopg.Connection
) -> None:
    storage.enqueue(Job.new("work"))
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND application_name = 'qml-mp'"
    )

    assert storage.job_counts()[StateName.ENQUEUED] == 1
    assert storage.enqueue(Job.new("work"))


@pytest.mark.parametrize("said", ["", "&pooler=transaction"])
def test_nothing_listens_where_sessions_are_shared(url: str, said: str) -> None:
    with closing(open_storage(url + said)) as storage:
        storage.migrate()

        assert storage.open_waker() is None
        assert storage.url == url + said


def test_who_waits_for_jobs_looks_for_them_where_nothing_listens(
    storage: Storage, url: str, admin: psycopg.Connection
) -> None:
    register(storage)
    with closing(QmlApp(url, config=ServerConfig(polling_interval=timedelta(milliseconds=50)))) as app:
        handles = app.enqueue_many(Job.new("work") for _ in range(2))
        with ThreadPoolExecutor() as threads:
            waiting = threads.submit(app.wait_all, handles, 60)
            time.sleep(0.1)  # longer than a young job is only looked for
            for _ in handles:
                claim = storage.fetch_and_lock_job(FETCH)
                assert claim is not None
                storage.finish(claim, DONE, retention=KEEP)

            assert waiting.result(60) == [{"ok": True}] * 2
    assert admin.execute(f"SELECT count(*) FROM {SCHEMA}.waits").fetchone() == (0,)


def test_a_pooler_that_keeps_sessions_is_as_good_as_none_once_the_url_says_so(
    postgres_url: str, admin: psycopg.Connection
) -> None:
    with pgbouncer(postgres_url, pool_mode="session", pool_size=5) as pooler:
        url = in_schema(pooler.before(postgres_url), SCHEMA) + "&pooler=session"
        with closing(open_storage(url)) as storage:
            storage.migrate()
            waker = storage.open_waker()
            assert waker is not None

            storage.enqueue(Job.new("work"))

            wait_until(waker.drain, what="the wake-up")
            waker.close()
    assert admin.execute(f"SELECT count(*) FROM {SCHEMA}.jobs").fetchone() == (1,)


def test_a_measurement_wants_the_database_itself(storage: Storage, admin: psycopg.Connection) -> None:
    with pytest.raises(StorageError, match="the URL of the database itself"):
        storage.make_scratch()

    assert admin.execute(
        "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'qml_mp_bench%'"
    ).fetchone() == (0,)
