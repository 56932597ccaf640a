"""Tests of a PostgreSQL URL with two hosts. Those with a real standby: `scripts/soak --only failover`."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from tests.postgres_cluster import free_port
from tests.processes.harness import wait_until
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import enqueued, in_schema, patient_url

SCHEMA = f"two_hosts_{uuid.uuid4().hex}"  # of this process: others use the server too
READ_ONLY = "&options=-c%20default_transaction_read_only%3Don"


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    """The first of the hosts: another way to the server of the second one."""
    with FlakyProxy.before(postgres_url) as proxy:
        yield proxy


def url_of_both(first: FlakyProxy, second: str, *, wanted: str = "read-write") -> str:
    """Of both hosts, to whichever is as wanted."""
    place = conninfo_to_dict(second)
    hosts = f"127.0.0.1:{first.port},{place['host']}:{place['port']}"
    server = f"postgresql://{place['user']}@{hosts}/{place['dbname']}?target_session_attrs={wanted}"
    return patient_url(in_schema(server, SCHEMA))


@pytest.fixture
def url(postgres_url: str, proxy: FlakyProxy) -> Iterator[str]:
    """Of both, to whichever takes writes; its schema goes with it."""
    yield url_of_both(proxy, postgres_url)
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


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


@pytest.fixture
def gone() -> Iterator[FlakyProxy]:
    """A host without a server."""
    with FlakyProxy("127.0.0.1", free_port()) as gone:
        yield gone


@pytest.mark.usefixtures("url")  # whose schema goes
def test_the_host_that_has_taken_writes_is_asked_before_one_that_is_gone(
    postgres_url: str, gone: FlakyProxy
) -> None:
    url = url_of_both(gone, postgres_url)
    with closing(open_storage(url)) as storage, closing(open_storage(url)) as other:
        storage.now()
        assert gone.refused == 1

        storage.close()
        storage.now()
        other.now()
        waker = storage.open_waker()
        assert waker is not None
        waker.close()
        assert gone.refused == 1


def test_where_no_host_takes_writes_the_error_says_so(url: str) -> None:
    with (
        closing(open_storage(f"{url}{READ_ONLY}")) as storage,
        pytest.raises(StorageUnavailable, match="session is read-only"),
    ):
        storage.enqueue(Job.new("work"))
