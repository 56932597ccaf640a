"""Tests of the PostgreSQL backend when the server, the network or a limit says no."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from qml_mp.core.job import Job
from qml_mp.core.outcome import Retry
from qml_mp.core.state import StateName
from qml_mp.errors import (
    SchemaMismatch,
    StorageError,
    StorageUnavailable,
    StorageUnreachable,
)
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.processes.harness import wait_until
from tests.storage.claimer import FETCH, register
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import (
    DONE,
    HOUR,
    KEEP,
    NO,
    enqueued,
    fetch,
    finish_and_fetch,
    in_children,
    in_schema,
    open_patiently,
    patient_url,
    present,
)

SCHEMA = f"outages_{uuid.uuid4().hex}"  # of this process: others use the server too
HASTE = timedelta(milliseconds=200)

pytestmark = pytest.mark.usefixtures("time_for_work")


@pytest.fixture
def admin(postgres_url: str) -> Iterator[psycopg.Connection]:
    """A connection of somebody else's to the same database; the schema of the test goes with it."""
    with closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        yield connection
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


@pytest.fixture
def storage(postgres_url: str, admin: psycopg.Connection) -> Iterator[Storage]:
    with closing(
        open_storage(patient_url(in_schema(postgres_url, SCHEMA)), application_name=SCHEMA, patience=HASTE)
    ) as opened:
        yield opened


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    """A proxy before the server."""
    place = conninfo_to_dict(postgres_url)
    with FlakyProxy(str(place["host"]), int(place["port"] or 5432)) as running:
        yield running


@pytest.fixture
def through_proxy(postgres_url: str, proxy: FlakyProxy, admin: psycopg.Connection) -> Iterator[Storage]:
    """A storage that reaches the server through the proxy, and has its connection open."""
    place = conninfo_to_dict(postgres_url)
    url = f"postgresql://{place['user']}@127.0.0.1:{proxy.port}/{place['dbname']}"
    with closing(open_storage(patient_url(in_schema(url, SCHEMA)), patience=HASTE)) as opened:
        opened.migrate()
        yield opened


def terminate(admin: psycopg.Connection, application_name: str) -> None:
    """End every session of the name, and return when the server is done with them."""
    admin.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s",
        [application_name],
    )


@pytest.mark.fault(35)
def test_a_terminated_session_is_replaced_at_the_next_use(
    storage: Storage, admin: psycopg.Connection
) -> None:
    job_id = storage.enqueue(Job.new("work"))
    terminate(admin, SCHEMA)

    claim = storage.fetch_and_lock_job(fetch("default"))
    terminate(admin, SCHEMA)
    read = present(storage, job_id)

    assert claim is not None
    assert claim.job.id == job_id
    assert read.state_name is StateName.PROCESSING


@pytest.mark.fault(36)
def test_a_finish_whose_reply_was_lost_is_accepted_when_repeated(
    through_proxy: Storage, proxy: FlakyProxy
) -> None:
    through_proxy.enqueue(Job.new("work"))
    claim = through_proxy.fetch_and_lock_job(fetch("default"))
    assert claim is not None
    proxy.lose_reply(1)
    with pytest.raises(StorageUnavailable):
        through_proxy.finish(claim, DONE, retention=KEEP)

    finished = through_proxy.finish(claim, DONE, retention=KEEP)

    assert finished.accepted
    assert finished.state is StateName.SUCCEEDED


@pytest.mark.fault(36)
def test_a_retry_whose_reply_was_lost_is_charged_once(through_proxy: Storage, proxy: FlakyProxy) -> None:
    job_id = through_proxy.enqueue(Job.new("work"))
    claim = through_proxy.fetch_and_lock_job(fetch("default"))
    assert claim is not None
    outcome = Retry(error=NO, delay=HOUR)
    proxy.lose_reply(2)  # the first says that the claim still holds, the second that it is finished
    with pytest.raises(StorageUnavailable):
        through_proxy.finish(claim, outcome, retention=KEEP)

    finished = through_proxy.finish(claim, outcome, retention=KEEP)

    assert finished.accepted
    assert present(through_proxy, job_id).failures == 1
    assert len(through_proxy.attempts(job_id)) == 1


@pytest.mark.fault(36)
def test_the_next_claim_that_was_lost_with_a_reply_is_found_again(
    through_proxy: Storage, proxy: FlakyProxy
) -> None:
    register(through_proxy)
    first_id, second_id, _ = through_proxy.enqueue_many(Job.new("work", n) for n in range(3))
    claim = through_proxy.fetch_and_lock_job(FETCH)
    assert claim is not None
    assert claim.job.id == first_id
    proxy.lose_reply(1)
    with pytest.raises(StorageUnavailable):
        finish_and_fetch(through_proxy, claim, DONE, FETCH)

    finished = through_proxy.finish(claim, DONE, retention=KEEP)
    renewed = through_proxy.renew_epoch("w-1")

    assert finished.accepted
    assert renewed is not None
    (found,) = renewed.claims
    assert (found.job.id, found.job.claim_seq) == (second_id, 1)
    assert [held.key for held in through_proxy.claims()] == [found.key]


@pytest.mark.fault(36)
def test_a_first_claim_that_was_lost_with_its_reply_is_found_again(
    through_proxy: Storage, proxy: FlakyProxy
) -> None:
    register(through_proxy)
    first_id, _ = through_proxy.enqueue_many(Job.new("work", n) for n in range(2))
    proxy.lose_reply(1)
    with pytest.raises(StorageUnavailable):
        through_proxy.fetch_and_lock_job(FETCH)

    renewed = through_proxy.renew_epoch("w-1")

    assert renewed is not None
    assert [claim.job.id for claim in renewed.claims] == [first_id]
    assert len(through_proxy.claims()) == 1


@pytest.mark.fault(36)
@pytest.mark.parametrize("after_bytes", [0, 100_000])
def test_a_bulk_that_was_cut_off_in_the_middle_left_nothing(
    through_proxy: Storage, proxy: FlakyProxy, admin: psycopg.Connection, after_bytes: int
) -> None:
    jobs = [Job.new("work", n) for n in range(5000)]
    proxy.lose_question(after_bytes)

    with pytest.raises(StorageUnavailable):
        through_proxy.enqueue_many(jobs)

    assert sum(through_proxy.job_counts().values()) == 0
    in_use = f"SELECT 1 FROM pg_locks WHERE relation = '{SCHEMA}.jobs'::regclass"
    wait_until(lambda: not admin.execute(in_use).fetchall(), what="the end of what was cut off")
    assert through_proxy.enqueue_many(jobs) == [job.id for job in jobs]


@pytest.mark.fault(36)
def test_an_enqueue_whose_reply_was_lost_can_be_repeated(through_proxy: Storage, proxy: FlakyProxy) -> None:
    job = Job.new("work")
    through_proxy.job_counts()  # which looks at the schema: the next reply is that of the INSERT
    proxy.lose_reply(1)
    with pytest.raises(StorageUnavailable):
        through_proxy.enqueue(job)

    job_id = through_proxy.enqueue(job)

    assert job_id == job.id
    assert through_proxy.job_counts()[StateName.ENQUEUED] == 1


@pytest.mark.fault(37)
def test_a_server_that_no_longer_answers_is_given_up(
    through_proxy: Storage, proxy: FlakyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qml_mp.storage.postgres.link._WORK_MS", 2000)
    through_proxy.close()
    wait_until(lambda: enqueued(through_proxy, "work"), what="an answer within that time")
    proxy.go_silent()

    with pytest.raises(StorageUnavailable, match="did not reply"):
        through_proxy.enqueue(Job.new("work"))


@pytest.mark.fault(38)
def test_no_server_at_the_port_is_said_without_the_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    storage = open_storage(f"postgresql://me:s3cret@127.0.0.1:{port}/jobs")

    with pytest.raises(StorageUnavailable) as caught:
        storage.enqueue(Job.new("work"))

    assert f"me:***@127.0.0.1:{port}/jobs" in str(caught.value)
    assert "s3cret" not in str(caught.value)


@pytest.mark.fault(39)
def test_a_server_without_a_free_connection_is_unavailable(
    postgres_url: str, storage: Storage, admin: psycopg.Connection
) -> None:
    storage.migrate()
    admin.execute(f"DROP ROLE IF EXISTS crowded_{SCHEMA}")
    admin.execute(f"CREATE ROLE crowded_{SCHEMA} LOGIN CONNECTION LIMIT 0")
    place = conninfo_to_dict(postgres_url)
    url = f"postgresql://crowded_{SCHEMA}@{place['host']}:{place['port']}/{place['dbname']}"

    with pytest.raises(StorageUnavailable, match=r"too many connections.* All its connections"):
        open_storage(in_schema(url, SCHEMA)).claims()

    admin.execute(f"DROP ROLE crowded_{SCHEMA}")


@pytest.mark.fault(41)
def test_a_read_only_server_gives_no_claims(
    postgres_url: str, storage: Storage, admin: psycopg.Connection
) -> None:
    job_id = storage.enqueue(Job.new("work"))
    url = f"{postgres_url}?options=-c%20default_transaction_read_only%3Don"

    with (
        closing(open_storage(in_schema(url, SCHEMA))) as read_only,
        pytest.raises(StorageUnavailable, match="read-only"),
    ):
        read_only.fetch_and_lock_job(fetch("default"))

    assert present(storage, job_id).state_name is StateName.ENQUEUED


@pytest.mark.fault(40)
def test_a_table_that_stays_locked_is_unavailable_and_the_storage_goes_on_after(
    storage: Storage, admin: psycopg.Connection
) -> None:
    storage.enqueue(Job.new("work"))
    with admin.transaction():
        admin.execute(f"LOCK TABLE {SCHEMA}.jobs IN ACCESS EXCLUSIVE MODE")

        with pytest.raises(StorageUnavailable, match="lock timeout"):
            storage.fetch_and_lock_job(fetch("default"))

    assert storage.fetch_and_lock_job(fetch("default")) is not None


@pytest.mark.fault(40)
def test_a_deadlock_costs_one_try_and_charges_nothing(
    postgres_url: str, storage: Storage, admin: psycopg.Connection
) -> None:
    register(storage)
    ids = storage.enqueue_many(Job.new("work", n) for n in range(2))
    claims = [storage.fetch_and_lock_job(FETCH) for _ in ids]
    finished = [(claim, Retry(error=NO, delay=HOUR)) for claim in claims if claim is not None]
    first, second = sorted(ids)
    lock = f"SELECT FROM {SCHEMA}.jobs WHERE id = %s FOR UPDATE"

    def finish() -> bool:
        """False: it was the victim, and nothing of it is written."""
        with closing(open_patiently(in_schema(postgres_url, SCHEMA))) as patient:
            try:
                done = patient.exchange(finished, fetch=None, limit=0, retention=KEEP).finished
            except StorageUnavailable as error:
                if "deadlock" not in str(error):
                    raise
                return False
            return all(each.accepted for each in done)

    with ThreadPoolExecutor(1) as pool:
        with contextlib.suppress(psycopg.errors.DeadlockDetected), admin.transaction():
            admin.execute(lock, [second])
            trying = pool.submit(finish)  # locks the first one, and waits for the second
            wait_until(lambda: is_locked(admin, first), what="the lock of the first row")
            admin.execute(lock, [first])
        was_written = trying.result(timeout=20)

    assert was_written or finish()
    for job_id in ids:
        assert present(storage, job_id).failures == 1
        assert len(storage.attempts(job_id)) == 1


def is_locked(admin: psycopg.Connection, job_id: str) -> bool:
    """Whether another session has the row."""
    query = f"SELECT FROM {SCHEMA}.jobs WHERE id = %s FOR UPDATE SKIP LOCKED"
    with closing(psycopg.connect(admin.info.dsn, autocommit=True)) as other:
        return other.execute(query, [job_id]).fetchone() is None


def test_a_role_without_rights_is_told_so(
    postgres_url: str, storage: Storage, admin: psycopg.Connection
) -> None:
    storage.migrate()
    admin.execute(f"DROP ROLE IF EXISTS stranger_{SCHEMA}")
    admin.execute(f"CREATE ROLE stranger_{SCHEMA} LOGIN")
    place = conninfo_to_dict(postgres_url)
    url = f"postgresql://stranger_{SCHEMA}@{place['host']}:{place['port']}/{place['dbname']}"

    with (
        closing(open_storage(in_schema(url, SCHEMA))) as opened,
        pytest.raises(StorageError, match="does not permit"),
    ):
        opened.claims()

    admin.execute(f"DROP ROLE stranger_{SCHEMA}")


@pytest.mark.fault(65)
def test_a_forked_child_uses_a_session_of_its_own_and_leaves_the_parents_alone(
    storage: Storage, admin: psycopg.Connection, tmp_path: Path
) -> None:
    job_id = storage.enqueue(Job.new("work"))
    wait_until(lambda: len(_sessions(admin)) == 1, what="the end of those of earlier tests")
    own_session = _sessions(admin)

    def child() -> None:
        assert present(storage, job_id).method == "work"
        (tmp_path / "sessions").write_text(repr(_sessions(admin_of_child(storage))))
        storage.close()

    statuses = in_children([child])

    assert [os.waitstatus_to_exitcode(status) for status in statuses] == [0]
    assert (tmp_path / "sessions").read_text() != repr(own_session)
    assert present(storage, job_id).method == "work"
    wait_until(lambda: _sessions(admin) == own_session, what="the end of the child's session")


@pytest.mark.parametrize("is_cut", [True, False], ids=["cut off", "with its connection open"])
def test_a_schema_that_was_dropped_is_made_anew_by_nobody_who_has_used_it(
    storage: Storage, admin: psycopg.Connection, is_cut: bool
) -> None:
    storage.enqueue(Job.new("work"))
    with closing(open_storage(storage.url)) as worker:
        worker.expect_schema()
        admin.execute(f"ALTER SCHEMA {SCHEMA} RENAME TO {SCHEMA}_kept")
        if is_cut:
            terminate(admin, SCHEMA)

        for use in (lambda: storage.enqueue(Job.new("work")), storage.schema_version, worker.job_counts):
            with pytest.raises(StorageUnreachable, match="was dropped while in use"):
                use()
        found = admin.execute("SELECT to_regnamespace(%s)", [SCHEMA]).fetchone()
        admin.execute(f"ALTER SCHEMA {SCHEMA}_kept RENAME TO {SCHEMA}")

        assert found == (None,)
        assert storage.job_counts() == worker.job_counts()
        assert storage.job_counts()[StateName.ENQUEUED] == 1


@pytest.mark.parametrize(
    ("lacking", "what"),
    [
        ("ALTER TABLE {s}.jobs RENAME TO jobs_kept", r'relation "outages_.*\.jobs" does not exist'),
    ],
    ids=["a table"],
)
def test_a_schema_that_lacks_something_and_goes_on_to_is_told_as_that(
    storage: Storage, admin: psycopg.Connection, lacking: str, what: str
) -> None:
    storage.enqueue(Job.new("work"))
    admin.execute(lacking.format(s=SCHEMA).encode())

    for _ in range(2):
        with pytest.raises(SchemaMismatch, match=what):
            storage.enqueue(Job.new("work"))


def test_whoever_has_used_a_schema_that_was_dropped_may_still_make_it_by_name(
    storage: Storage, admin: psycopg.Connection
) -> None:
    storage.enqueue(Job.new("work"))
    admin.execute(f"DROP SCHEMA {SCHEMA} CASCADE")

    applied = storage.migrate()

    assert applied
    assert storage.enqueue(Job.new("work"))


def admin_of_child(storage: Storage) -> psycopg.Connection:
    """A fresh connection, since the fixture's belongs to the parent."""
    return psycopg.connect(storage.url.partition("?")[0], autocommit=True)


def _sessions(admin: psycopg.Connection) -> list[int]:
    rows = admin.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY backend_start", [SCHEMA]
    )
    return [pid for (pid,) in rows]


@pytest.mark.fault(35)
def test_a_waker_says_that_its_connection_is_lost(storage: Storage, admin: psycopg.Connection) -> None:
    waker = storage.open_waker()
    assert waker is not None
    terminate(admin, SCHEMA)

    with pytest.raises(StorageUnavailable):
        waker.drain()

    waker.close()
    waker.close()
