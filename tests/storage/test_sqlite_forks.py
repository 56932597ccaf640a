"""Tests of the storage in an SQLite file: what becomes of its connections, and of the user's, at a fork."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.errors import StorageError
from qml_mp.storage.store import Storage
from tests.storage.helpers import in_children, open_sqlite
from tests.storage.sqlite_programs import check


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def storage(path: Path) -> Iterator[Storage]:
    with closing(open_sqlite(path)) as opened:
        yield opened


@pytest.mark.fault(65)
def test_no_handle_on_the_file_crosses_a_fork(storage: Storage, path: Path) -> None:
    storage.enqueue(Job.new("work"))

    def look_and_use() -> None:
        held = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)]
        assert not [name for name in held if name.startswith(str(path))]
        storage.enqueue(Job.new("work"))

    actions: list[Callable[[], None]] = [look_and_use] * 4
    statuses = in_children(actions)

    storage.enqueue(Job.new("work"))
    assert statuses == [0] * 4
    assert sum(storage.job_counts().values()) == 6
    assert check(path) == "ok"


@pytest.mark.fault(65)
def test_a_child_forked_beside_a_connection_of_the_users_refuses_the_file(
    storage: Storage, path: Path
) -> None:
    storage.migrate()
    with open_by_user(path):
        statuses = in_children([partial(refuses, storage), partial(refuses, open_sqlite(path))])
        storage.enqueue(Job.new("work"))

    assert statuses == [0, 0]
    assert in_children([lambda: storage.enqueue(Job.new("work"))]) == [0]
    assert sum(storage.job_counts().values()) == 2


@pytest.mark.fault(65)
def test_a_child_puts_no_job_into_a_transaction_of_a_connection_that_it_has_inherited(
    storage: Storage, path: Path
) -> None:
    storage.migrate()

    def enqueue_in_child() -> None:
        with pytest.raises(StorageError, match="forked while a connection to it was open"):
            storage.enqueue_in(users, [Job.new("work")])

    with open_by_user(path) as users:
        statuses = in_children([enqueue_in_child])
        storage.enqueue_in(users, [Job.new("work")])
        users.commit()

    assert statuses == [0]
    assert sum(storage.job_counts().values()) == 1


@pytest.mark.fault(20)
@pytest.mark.parametrize("is_replaced", [True, False], ids=["replaced", "closed"])
def test_a_connection_whose_descriptors_are_its_own_no_more_is_left_open_at_a_fork_and_at_the_end(
    storage: Storage, path: Path, is_replaced: bool
) -> None:
    storage.migrate()
    storage.close()

    def take_away_and_fork() -> None:
        acked = storage.enqueue(Job.new("work"))
        for fd in storage.descriptors():
            os.close(fd)
            if is_replaced:
                os.dup2(os.open(path.with_name(f"foreign{fd}"), os.O_RDWR | os.O_CREAT, 0o600), fd)
        assert in_children([lambda: refuses_what_is_lost(storage)]) == [0]
        refuses_what_is_lost(storage)
        storage.close()
        path.with_name("acked").write_text(acked)

    statuses = in_children([take_away_and_fork])

    assert statuses == [0]
    assert [file.name for file in path.parent.glob("foreign*") if file.read_bytes()] == []
    assert storage.get(path.with_name("acked").read_text()) is not None


@contextmanager
def open_by_user(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of the user's own, which has read."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT count(*) FROM qml_jobs").fetchone()
        yield connection


def refuses(storage: Storage) -> None:
    """In a child that was forked beside an open connection."""
    for _ in range(2):
        with pytest.raises(StorageError, match="forked while a connection to it was open"):
            storage.enqueue(Job.new("work"))


def refuses_what_is_lost(storage: Storage) -> None:
    with pytest.raises(StorageError, match="has closed the descriptors of the connection to it"):
        storage.enqueue(Job.new("work"))


def _is_open(fd: str) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}")
