"""Tests of the storage: what goes to PostgreSQL together, when, and what is told of its failures."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)

HASTE = timedelta(seconds=3)  # with what a statement has for its work, and the network, 6 s for a reply
_LOCK = "SELECT pg_backend_pid() AS pid FROM {s}.jobs WHERE id = %(id)s FOR UPDATE"
_NO_ROWS = "DELETE FROM {s}.jobs WHERE id = %(id)s"


def test_a_session_from_which_a_reply_was_read_is_idle_in_its_transaction(storage: Storage, raw: Raw) -> None:
    """Which `idle_in_transaction_session_timeout` ends. One that waits for more of a pipeline, as no
    Sync has come, would keep its locks for as long as its process is stopped."""
    job_id = storage.enqueue(Job.new("work"))

    with storage._db.transaction("locking") as transaction:
        row = transaction.run(_LOCK, {"id": job_id}).first()
        assert row is not None
        states = raw.run("SELECT state FROM pg_stat_activity WHERE pid = ?", row["pid"])

    assert states == [("idle in transaction",)]


def test_a_statement_is_not_sent_before_a_reply_is_asked_for(storage: Storage, raw: Raw) -> None:
    job_id = storage.enqueue(Job.new("work"))

    with storage._db.transaction("locking") as transaction:
        transaction.run(_LOCK, {"id": job_id})

        free = raw.run("SELECT id FROM {jobs} WHERE id = ? FOR UPDATE NOWAIT", job_id)

    assert free == [(job_id,)]


def test_what_was_not_sent_when_a_transaction_breaks_off_is_never_executed(
    storage: Storage, raw: Raw
) -> None:
    schema = schema_of(raw)
    raw.run(f"CREATE SEQUENCE {schema}.executed")  # no rollback takes its numbers back

    def break_off() -> None:
        with storage._db.transaction("breaking off") as transaction:
            transaction.run("SELECT nextval('{s}.executed')")
            raise KeyError("of ours")

    with pytest.raises(KeyError, match="of ours"):
        break_off()

    assert raw.run(f"SELECT is_called FROM {schema}.executed") == [(False,)]
    assert storage.job_counts()  # on another connection


def test_a_statement_that_fails_behind_one_without_rows_fails_the_transaction(storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("work"))

    def fail() -> None:
        with storage._db.transaction("failing") as transaction:
            deleted = transaction.run(_NO_ROWS, {"id": job_id})
            transaction.run("SELECT 1 FROM {s}.nowhere")
            assert deleted.count == 1

    with pytest.raises(StorageError, match="nowhere"):
        fail()

    assert storage.get(job_id) is not None


def test_the_reason_why_the_server_has_ended_a_session_is_told(storage: Storage, raw: Raw) -> None:
    def stay_idle() -> None:
        with storage._db.transaction("being idle") as transaction:
            transaction.run("SELECT set_config('idle_in_transaction_session_timeout', '50ms', true)")
            row = transaction.run("SELECT pg_backend_pid() AS pid").first()
            assert row is not None
            while raw.run("SELECT 1 FROM pg_stat_activity WHERE pid = ?", row["pid"]):
                pass
            transaction.run("SELECT 1").rows()

    with pytest.raises(StorageUnavailable) as raised:
        stay_idle()

    assert isinstance(raised.value.__cause__, psycopg.errors.IdleInTransactionSessionTimeout)


def test_a_session_whose_reply_nobody_reads_is_ended(storage: Storage, raw: Raw) -> None:
    """Its locks would be held for as long as a job runs, or a process is stopped: to write a reply that no
    buffer holds counts neither as the work of a statement nor as an idle transaction."""
    job_id = storage.enqueue(Job.new("work"))
    storage.job_counts()  # which connects
    long_reply = "SELECT repeat('x', 50000000) FROM {s}.jobs WHERE id = %(id)s FOR UPDATE"

    sender = storage._db.sender
    assert sender is not None
    receive = sender.send("reading nothing", long_reply, {"id": job_id})
    while not raw.run("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite'"):
        pass
    free = raw.run("SELECT id FROM {jobs} WHERE id = ? FOR UPDATE", job_id)

    assert free == [(job_id,)]
    with pytest.raises(StorageUnavailable):
        receive()


def test_claims_are_given_back_however_many_a_dead_server_had(storage: Storage, raw: Raw, url: str) -> None:
    """Each reply comes in time, also where the server stands still for some seconds, and all of them together
    take longer than one may."""
    storage.enqueue_many(Job.new("work") for _ in range(800))
    raw.run(
        "UPDATE {jobs} SET state = 'processing', claim_seq = 1, started_at = now(), server_id = 'server#1', "
        "worker_id = 'worker-1'"
    )
    raw.run(
        f"CREATE FUNCTION {schema_of(raw)}.dawdle() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$"
    )
    raw.run(
        "CREATE TRIGGER dawdle BEFORE UPDATE ON {jobs} FOR EACH ROW "
        f"EXECUTE FUNCTION {schema_of(raw)}.dawdle()"
    )

    with closing(open_storage(url, patience=HASTE)) as hasty:
        given_back = hasty.reclaim_server("server#1", silent_for=None)

    assert given_back == 800
    assert storage.claims() == []


def schema_of(raw: Raw) -> str:
    """As SQL names it."""
    return raw.name("jobs").rpartition(".")[0]
