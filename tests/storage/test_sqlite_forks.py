"""Tests of the storage in an SQLite file: what becomes of its connections, and of the user's, at a fork."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from qml_mp.clock import SystemClock
from qml_mp.core.job import Job
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.host import identity_of_file
from qml_mp.storage.sqlite.database import SqliteDatabase
from qml_mp.storage.sqlite.opening import open_descriptors, version_of
from qml_mp.storage.sqlite.users import log_of
from qml_mp.storage.store import Storage
from tests.storage.helpers import fork, in_children, open_sqlite, sqlite_connection
from tests.storage.sqlite_programs import CREATE_TABLE, NEWCOMER, check, run_program

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.readline()
connection.rollback()
connection.close()
"""


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
def test_a_fork_inside_a_transaction_leaves_the_parents_handle_to_the_parent(
    storage: Storage, path: Path
) -> None:
    storage.migrate()
    with sqlite_connection(storage).write() as connection:
        connection.execute("CREATE TABLE mine (n INTEGER)")
        statuses = in_children([partial(refuses, storage)])

    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM mine").fetchone() == (0,)
    assert statuses == [0]
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
def test_a_child_refuses_the_file_although_it_reads_by_what_it_has_inherited(
    storage: Storage, path: Path
) -> None:
    storage.migrate()
    with open_by_user(path) as users:

        def read_and_use() -> None:
            users.execute("BEGIN")
            users.execute("SELECT count(*) FROM qml_jobs").fetchone()
            refuses(storage)

        statuses = in_children([read_and_use])

    assert statuses == [0]


@pytest.mark.fault(65)
def test_threads_of_a_child_that_look_at_once_all_refuse_the_file(storage: Storage, path: Path) -> None:
    storage.migrate()

    def use_from_threads() -> None:
        looks: list[bool] = []

        def look() -> None:
            for _ in range(50):
                refuses(open_sqlite(path))
            looks.append(True)

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert looks == [True, True]

    with open_by_user(path):
        statuses = in_children([use_from_threads])

    assert statuses == [0]


@pytest.mark.fault(65)
def test_a_child_forked_within_a_read_of_a_file_that_had_no_log_yet_refuses_it(path: Path) -> None:
    users = sqlite3.connect(path)
    users.executescript("CREATE TABLE mine (n INTEGER); INSERT INTO mine VALUES (1), (2)")
    rows = users.execute("SELECT n FROM mine")
    rows.fetchone()
    reading, writing = os.pipe()

    def use_once_it_has_one() -> None:
        os.close(writing)
        os.read(reading, 1)
        refuses(open_sqlite(path))

    pid = fork(use_once_it_has_one)
    rows.close()
    users.close()
    with closing(open_sqlite(path)) as storage:
        storage.enqueue(Job.new("work"))
        os.close(writing)
        _, status = os.waitpid(pid, 0)
    os.close(reading)

    assert status == 0


def test_a_connection_to_a_file_that_was_replaced_is_none_to_the_new_one(path: Path) -> None:
    with closing(open_sqlite(path)) as before:
        before.migrate()
    with open_by_user(path):
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
        with closing(open_sqlite(path)) as after:
            after.enqueue(Job.new("work"))

            assert not after.has_other_handles()
            assert in_children([lambda: after.enqueue(Job.new("work"))]) == [0]


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


def test_a_child_that_closes_what_it_inherited_uses_the_file_with_locks_of_its_own(
    storage: Storage, path: Path
) -> None:
    storage.migrate()
    users = sqlite3.connect(path)
    users.execute("SELECT count(*) FROM qml_jobs").fetchone()

    def close_and_use() -> None:
        users.close()
        storage.enqueue(Job.new("work"))
        run_program(CREATE_TABLE, path)  # which does not take itself for the last one
        storage.enqueue(Job.new("work"))

    statuses = in_children([close_and_use])
    users.close()

    assert statuses == [0]
    assert sum(storage.job_counts().values()) == 2
    assert check(path) == "ok"


def test_a_connection_of_the_users_beside_ours_is_none_that_was_inherited(
    storage: Storage, path: Path
) -> None:
    storage.migrate()
    storage.close()
    with open_by_user(path):
        storage.enqueue(Job.new("work"))

    assert sum(storage.job_counts().values()) == 1


@pytest.mark.fault(65)
def test_a_fork_has_a_thread_give_up_that_waits_for_a_lock_and_its_child_takes_its_own(path: Path) -> None:
    patient = SqliteDatabase(str(path), clock=Standing(), busy_timeout=timedelta(seconds=3))
    storage = Storage(patient)
    acked = [storage.enqueue(Job.new("work"))]
    told, given_up = path.with_name("told"), threading.Event()

    def wait_for_the_lock() -> None:
        with pytest.raises(StorageUnavailable, match="is locked"):
            storage.enqueue(Job.new("work"))
        given_up.set()
        storage.close()

    def enqueue_in_child(let_go: Callable[[], object]) -> None:
        let_go()
        ids = [
            storage.enqueue(Job.new("work")),
            run_program(NEWCOMER, path),
        ]  # which is not the last to close
        # The newcomer was not the last to close the file: its log is still there.
        told.write_text("\n".join([*ids, storage.enqueue(Job.new("work"))]))

    thread = threading.Thread(target=wait_for_the_lock)
    with held_by_a_program(path) as let_go:
        thread.start()
        while not patient.connection.running:
            time.sleep(0.001)
        statuses = in_children([partial(enqueue_in_child, let_go)])
    thread.join()

    acked += told.read_text().split()
    assert statuses == [0]
    assert given_up.is_set()
    assert len(acked) == 4
    assert [job_id for job_id in acked if storage.get(job_id) is None] == []
    storage.close()
    assert check(path) == "ok"


def test_a_signal_that_ends_the_wait_of_a_fork_leaves_the_storage_as_patient_as_it_was(path: Path) -> None:
    storage = open_sqlite(path)
    connection = sqlite_connection(storage)
    storage.migrate()

    connection._is_fork_waiting = True  # where the signal's exception, which Python drops, has struck
    assert in_children([lambda: None]) == [0]

    assert not connection._is_fork_waiting


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


@pytest.mark.fault(20)
def test_the_log_that_the_workers_storage_has_open_too_hides_no_loss_of_the_apps(path: Path) -> None:
    def lose_the_log() -> None:
        workers, apps = open_sqlite(path), open_sqlite(path)
        workers.enqueue(Job.new("work"))
        before = open_descriptors()
        apps.enqueue(Job.new("work"))
        log = identity_of_file(log_of(str(path)))
        opened = {fd for fd, file in open_descriptors().items() if file == log and fd not in before}
        (its_log,) = opened - {sqlite_connection(apps)._disk._descriptor}
        jobs_own = os.open(path.with_name("foreign"), os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(jobs_own, its_log)
        apps.close()
        refuses_what_is_lost(apps)
        assert identity_of_file(its_log) == identity_of_file(jobs_own)

    assert in_children([lose_the_log]) == [0]
    assert path.with_name("foreign").read_bytes() == b""
    assert check(path) == "ok"


@pytest.mark.parametrize("ends", [Storage.close, lambda _: in_children([lambda: None])], ids=["end", "fork"])
def test_a_connection_of_the_users_that_came_with_ours_may_go_before_it(
    storage: Storage, path: Path, monkeypatch: pytest.MonkeyPatch, ends: Callable[[Storage], object]
) -> None:
    storage.migrate()
    users: list[sqlite3.Connection] = []

    def version_while_the_user_opens(ours: sqlite3.Connection) -> int:
        if not users:
            users.append(sqlite3.connect(path))
            users[0].execute("SELECT count(*) FROM qml_jobs").fetchone()
        return version_of(ours)

    monkeypatch.setattr("qml_mp.storage.sqlite.connection.version_of", version_while_the_user_opens)
    storage.enqueue(Job.new("work"))
    users[0].close()
    ends(storage)

    storage.enqueue(Job.new("work"))

    assert sum(storage.job_counts().values()) == 2
    storage.close()
    assert check(path) == "ok"


@contextmanager
def open_by_user(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of the user's own, which has read."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("SELECT count(*) FROM qml_jobs").fetchone()
        yield connection


class Standing(SystemClock):
    """Those who look at it wait for as long as it takes."""

    def monotonic(self) -> float:
        return 0.0


def refuses(storage: Storage) -> None:
    """In a child that was forked beside an open connection."""
    for _ in range(2):
        with pytest.raises(StorageError, match="forked while a connection to it was open"):
            storage.enqueue(Job.new("work"))


def refuses_what_is_lost(storage: Storage) -> None:
    with pytest.raises(StorageError, match="has closed the descriptors of the connection to it"):
        storage.enqueue(Job.new("work"))


@contextmanager
def held_by_a_program(path: Path) -> Iterator[Callable[[], object]]:
    """A program has the write lock until the function is called."""
    reading, writing = os.pipe()
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=reading, stdout=subprocess.PIPE) as program:
        os.close(reading)
        assert program.stdout is not None
        assert program.stdout.readline() == b"held\n"
        yield lambda: os.write(writing, b"\n")
        os.close(writing)


def _is_open(fd: str) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}") or os.path.islink(f"/proc/self/fd/{fd}")
