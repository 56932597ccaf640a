"""Tests of the PostgreSQL backend behind a real PgBouncer, which gives each transaction any session."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta

import psycopg
import pytest

from qml_mp import QmlApp, ServerConfig
from qml_mp.core.job import Job
from qml_mp.core.outcome import Retry
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.pgbouncer import PgBouncer, PgBouncerError, pgbouncer
from tests.processes.harness import wait_until
from tests.storage.claimer import FETCH, register
from tests.storage.helpers import DONE, HOUR, KEEP, NO, in_schema, patient_url

SCHEMA = f"pooled_{uuid.uuid4().hex}"  # of this process: others use the server too
SETTINGS = ("enable_seqscan", "lock_timeout", "statement_timeout", "plan_cache_mode", "client_min_messages")

pytestmark = [pytest.mark.nightly, pytest.mark.usefixtures("time_for_work")]


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
    with closing(
        open_storage(patient_url(url), application_name=SCHEMA, patience=timedelta(milliseconds=200))
    ) as opened:
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
        "WHERE pid <> pg_backend_pid() AND application_name = %s",
        [SCHEMA],
    )

    assert storage.job_counts()[StateName.ENQUEUED] == 1
    assert storage.enqueue(Job.new("work"))


@pytest.mark.parametrize("said", [""])
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
