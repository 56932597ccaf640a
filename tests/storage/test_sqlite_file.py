"""Tests of the storage: the SQLite file under bad conditions."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.errors import StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.storage.sqlite import connection, disk
from qml_mp.storage.sqlite.users import has_lost_its_log
from qml_mp.storage.store import Storage
from tests.storage.helpers import in_children, open_sqlite, sqlite_connection
from tests.storage.sqlite_programs import (
    CLOSING,
    CREATE_TABLE,
    IMPATIENT,
    NEWCOMER,
    OPENING,
    check,
    run_program,
)

NOBODY = 65534
STOPPED_IN_A_WRITE = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def storage(path: Path) -> Iterator[Storage]:
    with closing(open_sqlite(path, patience=timedelta(milliseconds=50))) as opened:
        yield opened


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_file_is_for_its_owner_alone(storage: Storage, path: Path) -> None:
    before = os.umask(0)
    try:
        storage.enqueue(Job.new("work"))
    finally:
        os.umask(before)

    assert {mode_of(file) for file in path.parent.iterdir()} == {0o600}
    assert path.with_name("jobs.db-wal").exists()


def test_the_mode_of_a_file_that_was_there_stays(storage: Storage, path: Path) -> None:
    path.touch()
    path.chmod(0o660)

    storage.enqueue(Job.new("work"))

    assert mode_of(path) == 0o660


def test_commits_go_to_a_write_ahead_log(storage: Storage) -> None:
    with sqlite_connection(storage).read() as connection:
        settings = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }

    assert settings == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1}


def test_the_tables_live_beside_those_of_the_user(storage: Storage, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE jobs (mine TEXT)")
        connection.execute("INSERT INTO jobs VALUES ('kept')")

    storage.enqueue(Job.new("work"))

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM jobs").fetchall() == [("kept",)]


@pytest.mark.fault(43)
def test_a_lock_that_another_program_keeps_is_not_waited_for_without_bound(
    storage: Storage, path: Path
) -> None:
    storage.migrate()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StorageUnavailable, match=r"jobs\.db is locked"):
            storage.enqueue(Job.new("work"))
        seen = storage.job_counts()  # readers go on
        other.execute("ROLLBACK")

    storage.enqueue(Job.new("work"))
    assert sum(seen.values()) == 0
    assert sum(storage.job_counts().values()) == 1


def test_a_lock_is_said_to_be_that_of_this_program_where_it_is(storage: Storage, path: Path) -> None:
    storage.migrate()
    with closing(sqlite3.connect(path, isolation_level=None)) as own:
        own.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageUnavailable) as in_this_program:
            storage.enqueue(Job.new("work"))
        elsewhere = run_program(IMPATIENT, path)
        own.execute("ROLLBACK")

    assert "is locked by a transaction that this program itself has open" in str(in_this_program.value)
    assert "using(conn=connection)" in str(in_this_program.value)
    assert "is locked by another program" in elsewhere


@pytest.mark.fault(43)
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells nobody who has a lock")
def test_a_lock_of_a_program_that_is_stopped_is_said_to_be_its(storage: Storage, path: Path) -> None:
    storage.migrate()
    with subprocess.Popen([sys.executable, "-c", STOPPED_IN_A_WRITE, path]) as other:
        os.waitid(os.P_PID, other.pid, os.WSTOPPED)
        try:
            with pytest.raises(StorageUnavailable, match=rf"pid {other.pid}, .*kill -CONT {other.pid}"):
                storage.enqueue(Job.new("work"))
        finally:
            other.send_signal(signal.SIGCONT)

    storage.enqueue(Job.new("work"))
    assert sum(storage.job_counts().values()) == 1


@pytest.mark.fault(44)
@pytest.mark.parametrize("exists", [True, False], ids=["file", "folder"])
def test_what_cannot_be_written_is_said_and_left_alone(
    tmp_path: Path, path: Path, storage: Storage, exists: bool
) -> None:
    if exists:
        storage.enqueue(Job.new("work"))
        storage.close()
        path.chmod(0o444)
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o555)

    def try_as_nobody() -> None:
        if os.geteuid() == 0:  # permissions do not bind root
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        with pytest.raises(StorageUnavailable, match=r"jobs\.db cannot be (written|created|opened)"):
            open_sqlite(path).enqueue(Job.new("work"))

    statuses = in_children([try_as_nobody])
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o700)
    assert statuses == [0]
    assert sum(storage.job_counts().values()) == (1 if exists else 0)


@pytest.mark.fault(44)
@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_deleted_while_in_use_is_never_made_anew(storage: Storage, path: Path, replaced: bool) -> None:
    storage.enqueue(Job.new("work"))
    for file in list(path.parent.iterdir()):
        file.unlink()
    if replaced:
        open_sqlite(path).migrate()

    for _ in range(2):
        with pytest.raises(StorageUnavailable, match="deleted or replaced"):
            storage.enqueue(Job.new("work"))
        with pytest.raises(StorageUnavailable, match="deleted or replaced"):
            storage.check_schema()

    assert path.exists() == replaced


@pytest.mark.fault(44)
@pytest.mark.parametrize("has_proc", [True, False])
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (connection, "version_of"),
        (connection, "log_of"),
        (disk, "identity_of_file"),
        (disk, "index_of"),
        (disk, "_shown_name"),
        (disk, "open_descriptors"),
    ],
    ids=["connected to", "read", "with its log", "with what is known of the log", "of its index", "of all"],
)
def test_a_file_deleted_just_while_it_is_opened_is_said_to_be_deleted_and_takes_no_job(
    storage: Storage,
    path: Path,
    owner: ModuleType,
    name: str,
    has_proc: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage.enqueue(Job.new("work"))
    storage.close()
    descriptors = len(os.listdir("/dev/fd"))
    if not has_proc:
        monkeypatch.setattr(disk, "_shown_name", lambda _: None)
    call = getattr(owner, name)

    def with_all_deleted(*arguments: Any) -> Any:
        for file in list(path.parent.iterdir()):
            file.unlink()
        return call(*arguments)

    monkeypatch.setattr(owner, name, with_all_deleted)
    for _ in range(2):
        with pytest.raises(StorageUnreachable, match=r"The SQLite file .*, or .* was deleted or replaced"):
            storage.enqueue(Job.new("work"))

    assert not path.exists()
    assert len(os.listdir("/dev/fd")) == descriptors


@pytest.mark.fault(44)
@pytest.mark.parametrize("has_proc", [True, False])
@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("name", ["jobs.db-wal", "jobs.db-shm"])
def test_a_log_removed_while_in_use_is_said_and_nothing_is_lost(
    storage: Storage, path: Path, name: str, replaced: bool, has_proc: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_proc:
        monkeypatch.setattr(disk, "_shown_name", lambda _: None)
    before = storage.enqueue(Job.new("work"))
    remove(path.with_name(name), replaced=replaced)

    with pytest.raises(StorageUnavailable, match="deleted or replaced"):
        storage.enqueue(Job.new("work"))
    after = storage.enqueue(Job.new("work"))

    assert storage.get(before) is not None
    assert storage.get(after) is not None
    assert check(path) == "ok"


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    ("names", "replaced"),
    [(["-shm"], False), (["-shm"], True), (["-wal"], False), (["-wal", "-shm"], False)],
    ids=["index", "index replaced", "log", "both"],
)
def test_who_comes_after_a_log_was_removed_is_refused_as_long_as_others_use_it(
    storage: Storage, path: Path, names: list[str], replaced: bool
) -> None:
    acked = [storage.enqueue(Job.new("work"))]
    for name in names:
        remove(path.with_name(f"jobs.db{name}"), replaced=replaced)

    told = run_program(NEWCOMER, path)
    storage.close()

    acked.append(storage.enqueue(Job.new("work")))
    assert "deleted or replaced" in told
    assert [job_id for job_id in acked if storage.get(job_id) is None] == []
    assert check(path) == "ok"


@pytest.mark.parametrize("program", [OPENING, CLOSING], ids=["opens", "closes"])
def test_who_opens_or_closes_the_file_for_long_is_not_taken_for_one_that_has_lost_its_log(
    storage: Storage, path: Path, program: str
) -> None:
    """On a busy machine another process may stand still between two system calls."""
    storage.migrate()
    storage.close()
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        is_lost = has_lost_its_log(str(path))
        other.communicate()

    assert not is_lost


@pytest.mark.fault(44)
@pytest.mark.parametrize("replaced", [False, True])
def test_what_another_program_commits_beside_a_removed_index_stays(
    storage: Storage, path: Path, replaced: bool
) -> None:
    before = storage.enqueue(Job.new("work"))
    remove(path.with_name("jobs.db-shm"), replaced=replaced)
    run_program(CREATE_TABLE, path)

    storage.close()

    assert storage.get(before) is not None
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT count(*) FROM mine").fetchone() == (0,)
    assert check(path) == "ok"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match=r"folder of the SQLite file .*jobs.db does not exist"):
        open_sqlite(tmp_path / "no" / "jobs.db").enqueue(Job.new("work"))


def test_a_folder_in_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=tmp_path.name):
        open_sqlite(tmp_path).enqueue(Job.new("work"))


def test_another_kind_of_file_is_refused_and_left_alone(storage: Storage, path: Path) -> None:
    path.write_text("These are the notes of a meeting.\n" * 100)
    before = path.read_bytes()

    with pytest.raises(StorageError, match=r"jobs\.db is not an SQLite database"):
        storage.enqueue(Job.new("work"))

    assert path.read_bytes() == before


def test_a_file_in_another_encoding_than_utf_8_is_refused_and_left_alone(
    storage: Storage, path: Path
) -> None:
    with closing(sqlite3.connect(path)) as user:
        user.executescript("PRAGMA encoding = 'UTF-16'; CREATE TABLE notes (text TEXT)")
    before = path.read_bytes()

    for use in (lambda: storage.enqueue(Job.new("work")), storage.migrate, storage.schema_version):
        with pytest.raises(StorageError, match=r"jobs\.db keeps text in UTF-16"):
            use()

    assert path.read_bytes() == before


def test_a_damaged_file_is_said_to_be_damaged(storage: Storage, path: Path) -> None:
    storage.enqueue_many(Job.new("work", "x" * 1000) for _ in range(200))
    storage.close()
    content = bytearray(path.read_bytes())
    content[8192:] = os.urandom(len(content) - 8192)
    path.write_bytes(content)

    with pytest.raises(StorageError, match=r"jobs\.db is damaged"):
        storage.enqueue(Job.new("work"))


@pytest.mark.fault(42)
def test_a_full_disk_writes_nothing_and_recovers(storage: Storage, path: Path) -> None:
    kept = storage.enqueue(Job.new("work"))
    with sqlite_connection(storage).read() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 5}")  # SQLite's own way to a full disk

    with pytest.raises(StorageUnavailable, match="disk is full"):
        storage.enqueue_many(Job.new("work", "x" * 10_000) for _ in range(50))

    assert storage.get(kept) is not None
    assert sum(storage.job_counts().values()) == 1
    storage.enqueue(Job.new("work"))
    assert check(path) == "ok"


def test_threads_take_turns(storage: Storage) -> None:
    storage.migrate()
    threads = [
        threading.Thread(target=lambda: [storage.enqueue(Job.new("work")) for _ in range(10)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(storage.job_counts().values()) == 40


def test_a_closed_storage_opens_again_when_it_is_used(storage: Storage) -> None:
    storage.close()
    job_id = storage.enqueue(Job.new("work"))
    storage.close()
    storage.close()

    assert storage.get(job_id) is not None


@pytest.mark.fault(63)
def test_storages_that_come_and_go_leave_no_descriptor(path: Path) -> None:
    def use() -> int:
        with closing(open_sqlite(path)) as storage:
            storage.enqueue(Job.new("work"))
            waker = storage.open_waker()
            assert waker is not None
            waker.close()
        return len(os.listdir("/proc/self/fd"))

    gc.collect()  # else what earlier tests have left may close one meanwhile
    counts = [use() for _ in range(20)]

    assert counts == [counts[0]] * 20


def test_a_storage_that_is_dropped_unclosed_leaves_no_descriptor(path: Path) -> None:
    open_sqlite(path).enqueue(Job.new("work"))
    gc.collect()  # else what earlier tests have left may close one meanwhile
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(5):
        open_sqlite(path).enqueue(Job.new("work"))

    assert len(os.listdir("/proc/self/fd")) == before


def remove(file: Path, *, replaced: bool) -> None:
    """Delete it, or have a copy take its place."""
    if replaced:
        os.replace(shutil.copy(file, file.with_name("other")), file)
    else:
        file.unlink()
