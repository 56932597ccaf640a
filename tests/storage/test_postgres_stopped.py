"""Tests of the storage: of a process that is stopped amid a transaction, PostgreSQL ends the session.

It does so by `idle_in_transaction_session_timeout`, for which a session is idle once it has read a Sync. One
that waits for more of a pipeline would keep its locks for as long as the process is stopped."""

from __future__ import annotations

import pytest

from qml_mp.core.job import Job
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)

_LOCK = "SELECT pg_backend_pid() AS pid FROM {s}.jobs WHERE id = %(id)s FOR UPDATE"


def test_a_session_from_which_a_reply_was_read_is_idle_in_its_transaction(storage: Storage, raw: Raw) -> None:
    job_id = storage.enqueue(Job.new("work"))

    with storage._db.transaction("locking") as transaction:
        row = transaction.run(_LOCK, {"id": job_id}).first()
        assert row is not None
        states = raw.run("SELECT state FROM pg_stat_activity WHERE pid = ?", row["pid"])

    assert states == [("idle in transaction",)]


def test_nothing_is_sent_that_the_server_could_not_be_told_to_be_all_of_it(
    storage: Storage, raw: Raw
) -> None:
    job_id = storage.enqueue(Job.new("work"))

    with storage._db.transaction("locking") as transaction:
        transaction.run(_LOCK, {"id": job_id})

        free = raw.run("SELECT id FROM {jobs} WHERE id = ? FOR UPDATE NOWAIT", job_id)

    assert free == [(job_id,)]
