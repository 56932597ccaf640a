"""Tests of a PostgreSQL URL with two hosts. Those with a real standby: `scripts/soak --only failover`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.processes.harness import wait_until
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import in_schema, patient_url

SCHEMA = "two_hosts"
READ_ONLY = "&options=-c%20default_transaction_read_only%3Don"


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    """The first of the hosts: another way to the server of the second one."""
    with FlakyProxy.before(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def url(postgres_url: str, proxy: FlakyProxy) -> Iterator[str]:
    """Of both, to whichever takes writes; its schema goes with it."""
    place = conninfo_to_dict(postgres_url)
    hosts = f"127.0.0.1:{proxy.port},{place['host']}:{place['port']}"
    server = f"postgresql://{place['user']}@{hosts}/{place['dbname']}?target_session_attrs=read-write"
    yield patient_url(in_schema(server, SCHEMA))
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


def enqueued(storage: Storage, method: str) -> str | None:
    """The id of a job; None while the storage cannot be reached."""
    with contextlib.suppress(StorageUnavailable):
        return storage.enqueue(Job.new(method))
    return None


def test_when_the_first_host_is_gone_the_second_one_is_used(url: str, proxy: FlakyProxy) -> None:
    with closing(open_storage(url)) as storage:
        before = storage.enqueue(Job.new("before"))
        proxy.lose_reply(1)
        with contextlib.suppress(StorageUnavailable):
            storage.get(before)
        wait_until(lambda: proxy.replies_lost, what="a reply by the way of the first host")

        proxy.close()

        after = wait_until(lambda: enqueued(storage, "after"))
        assert {job.id for job in map(storage.get, (before, after)) if job is not None} == {before, after}


def test_where_no_host_takes_writes_the_error_says_so(url: str) -> None:
    with (
        closing(open_storage(f"{url}{READ_ONLY}")) as storage,
        pytest.raises(StorageUnavailable, match="session is read-only"),
    ):
        storage.enqueue(Job.new("work"))
