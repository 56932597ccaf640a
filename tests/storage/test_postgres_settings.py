"""Tests of the PostgreSQL backend where roles and sessions have other settings of how values are written."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import ConfigurationError, InvalidJob, StorageError
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.postgres_cluster import throwaway_cluster
from tests.processes.harness import wait_until
from tests.storage.claimer import FETCH, register
from tests.storage.helpers import DONE, HOUR, KEEP, in_an_hour, in_schema, present

OTHER_SETTINGS = {
    "DateStyle": "German",
    "IntervalStyle": "sql_standard",
    "array_nulls": "off",
    "TimeZone": "Asia/Tokyo",
    "default_transaction_isolation": "serializable",
}


@pytest.fixture(scope="module")
def unusual() -> Iterator[str]:
    """The URL of a server whose role has other settings."""
    with throwaway_cluster() as url:
        with psycopg.connect(url, autocommit=True) as admin:
            for name, value in OTHER_SETTINGS.items():
                admin.execute(f"ALTER ROLE CURRENT_USER SET {name} TO '{value}'")
        yield url


@pytest.fixture
def server_storage(unusual: str) -> Iterator[Storage]:
    """By TCP, as far as the way matters."""
    with closing(open_storage(unusual)) as opened:
        opened.migrate()
        yield opened


@pytest.fixture
def storage(unusual: str) -> Iterator[Storage]:
    with closing(open_storage(in_schema(unusual, f"s_{uuid.uuid4().hex}"))) as opened:
        yield opened


def test_settings_of_the_role_change_nothing(storage: Storage) -> None:
    at = in_an_hour()
    [later, *_] = storage.enqueue_many([Job.new("work", at=at), *(Job.new("work") for _ in range(2))])
    storage.enqueue_many(Job.new("work") for _ in range(60))
    register(storage)
    claim = storage.fetch_and_lock_job(FETCH)
    assert claim is not None
    storage.finish(claim, DONE, retention=KEEP)

    done = present(storage, claim)
    assert (done.state_name, present(storage, later).run_at) == (StateName.SUCCEEDED, at)
    assert done.finished_at is not None
    assert done.expires_at is not None
    assert done.expires_at - done.finished_at == KEEP.succeeded_ttl
    assert abs(storage.now() - datetime.now(UTC)) < HOUR
    assert len(storage.list_jobs(JobFilter(), limit=100).jobs) == 63


@pytest.mark.nightly  # waits four seconds for the server to end what is idle
def test_a_listener_stays_however_long_it_is_idle(unusual: str) -> None:
    with psycopg.connect(unusual, autocommit=True) as admin:
        if admin.info.server_version < 140000:
            pytest.skip("this server ends no idle session")
        admin.execute("ALTER ROLE CURRENT_USER SET idle_session_timeout TO '3s'")
        try:
            with closing(open_storage(unusual)) as opened:
                waker = opened.open_waker()
                assert waker is not None
                opened.enqueue(Job.new("work"))
                waker.drain()
                time.sleep(4)  # longer than the server lets a session be idle

                job_id = opened.enqueue(Job.new("work"))
                wait_until(lambda: waker.drain(), what="the news of it")
                waker.close()
        finally:
            admin.execute("ALTER ROLE CURRENT_USER RESET idle_session_timeout")
        assert job_id


@pytest.mark.parametrize("encoding", ["LATIN1"])
def test_a_database_that_cannot_hold_every_text_is_refused(unusual: str, encoding: str) -> None:
    with psycopg.connect(unusual, autocommit=True) as admin:
        name = f"in_{encoding.lower()}"
        admin.execute(
            f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
        host, port = admin.info.host, admin.info.port
        url = f"postgresql://{admin.info.user}@{host}:{port}/{name}"
    with closing(open_storage(url)) as opened:
        for use in (opened.check_rights, opened.migrate, opened.job_counts):
            with pytest.raises(StorageError, match=f"in the encoding {encoding}, .*ENCODING 'UTF8'"):
                use()
        assert opened.schema_version() == 0


def test_settings_of_the_callers_session_change_nothing(storage: Storage, unusual: str) -> None:
    first = storage.enqueue(Job.new("work", unique_key="k"))
    register(storage)
    assert storage.fetch_and_lock_job(FETCH) is not None
    with psycopg.connect(unusual) as session:
        ids = storage.enqueue_in(
            session,
            [
                Job.new("work", at=in_an_hour()), Job.new("work"),
                Job.new("work", unique_key="k", on_conflict="replace"),
            ],
        )  # fmt: skip

    assert ids[2] == first
    assert [present(storage, each).state_name for each in ids] == [
        StateName.SCHEDULED, StateName.ENQUEUED, StateName.PROCESSING,
    ]  # fmt: skip


def test_a_connection_by_unix_socket_is_to_the_same_database_as_one_by_tcp(
    server_storage: Storage, unusual: str
) -> None:
    with psycopg.connect(unusual) as by_tcp:
        found = by_tcp.execute("SELECT current_setting('unix_socket_directories')").fetchone()
    assert found is not None
    by_socket = make_conninfo(unusual, host=found[0])
    other = make_conninfo(by_socket, dbname="template1")

    with psycopg.connect(by_socket) as session:
        [job_id] = server_storage.enqueue_in(session, [Job.new("work")])
    with psycopg.connect(other) as session, pytest.raises(ConfigurationError, match="another database"):
        server_storage.enqueue_in(session, [Job.new("work")])

    assert present(server_storage, job_id).state_name is StateName.ENQUEUED


def test_the_callers_session_may_have_another_encoding(server_storage: Storage, unusual: str) -> None:
    with psycopg.connect(unusual) as session:
        session.execute("SET client_encoding TO 'SQL_ASCII'")
        [job_id] = server_storage.enqueue_in(session, [Job.new("work", "Grüße ✓")])
    with psycopg.connect(unusual) as session:
        session.execute("SET client_encoding TO 'LATIN1'")
        with pytest.raises(InvalidJob, match="client_encoding"):
            server_storage.enqueue_in(session, [Job.new("work", "Grüße ✓")])

    assert present(server_storage, job_id).payload == "Grüße ✓"
