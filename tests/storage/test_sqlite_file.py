"""Tests of the storage: the SQLite file under bad conditions: locked, removed, damaged, full, mounted."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.storage.sqlite import disk
from qml_mp.storage.sqlite.mounts import caveats_of
from qml_mp.storage.store import Storage
from tests.storage.helpers import DONE, KEEP, claim_new, in_children, open_sqlite, present, sqlite_connection
from tests.storage.sqlite_programs import IMPATIENT, check, run_program

NOBODY = 65534


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
@pytest.mark.parametrize("name", ["jobs.db-wal", "jobs.db-shm"])
def test_a_log_removed_while_in_use_is_said_and_nothing_is_lost(
    storage: Storage, path: Path, name: str
) -> None:
    before = storage.enqueue(Job.new("work"))
    path.with_name(name).unlink()

    with pytest.raises(StorageUnavailable, match="deleted or replaced"):
        storage.enqueue(Job.new("work"))
    after = storage.enqueue(Job.new("work"))

    assert storage.get(before) is not None
    assert storage.get(after) is not None
    assert check(path) == "ok"


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageUnavailable, match=r"folder of the SQLite file .*jobs.db does not exist"):
        open_sqlite(tmp_path / "no" / "jobs.db").enqueue(Job.new("work"))


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


# When what is committed to an SQLite file is on the disk, and a disk that fails.

Before = Callable[[], None]


@pytest.fixture
def migrated(path: Path) -> Iterator[Storage]:
    with closing(open_sqlite(path)) as opened:
        opened.migrate()
        yield opened


@pytest.fixture
def before_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Before], None]:
    """Have something done before each wait for the disk, which then is waited for."""
    wait = disk._sync

    def install(before: Before) -> None:
        def waited(descriptor: int) -> None:
            before()
            wait(descriptor)

        monkeypatch.setattr(disk, "_sync", waited)

    return install


def rows(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        count: int = connection.execute("SELECT count(*) FROM qml_jobs").fetchone()[0]
        return count


def fail() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_the_disk_is_waited_for_without_the_lock_and_before_anybody_is_told(
    migrated: Storage, path: Path, before_disk: Callable[[Before], None]
) -> None:
    seen = []

    def look() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")  # raises while the lock is held
            seen.append(rows(path))

    before_disk(look)

    migrated.enqueue(Job.new("work"))
    migrated.enqueue_many(Job.new("work", n) for n in range(3))

    assert seen == [1, 4]


def test_an_outcome_that_the_disk_refused_is_told_once_it_is_stored_anew(
    migrated: Storage, path: Path, before_disk: Callable[[Before], None], tmp_path: Path
) -> None:
    claim = claim_new(migrated)
    before_disk(fail)
    with pytest.raises(StorageUnreachable, match="disk reported an error"):
        migrated.finish(claim, DONE, retention=KEEP)
    before_disk(lambda: None)

    assert migrated.finish(claim, DONE, retention=KEEP).accepted

    # The kernel may have taken the log for written: what counts is in the file by itself now.
    alone = shutil.copy(path, tmp_path / "alone.db")
    with closing(open_sqlite(Path(alone))) as copy:
        assert present(copy, claim).state_name is StateName.SUCCEEDED


# Where an SQLite file is mounted, and what that means for its log.

_USE = """
import sys
from qml_mp.core.job import Job
from qml_mp.storage.open import open_storage
storage = open_storage(sys.argv[1])
for use in (storage.check_rights, storage.schema_version, lambda: storage.enqueue(Job.new("work"))):
    try:
        use()
    except Exception as error:
        print(type(error).__name__, error)
"""
_BIND = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
_BOUND = ("unshare", "--mount", "--propagation", "private", "sh", "-c")


def in_mounts(
    source: Path, target: Path, *command: str, how: str = _BIND
) -> subprocess.CompletedProcess[str]:
    """Run the command where `target` is a bind mount of `source`, or else what `how` makes of the two; fail
    where no such mount can be made."""
    mounting = (*_BOUND, how, "sh", str(source), str(target))
    tried = subprocess.run([*mounting, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.fail(
            "This test mounts a file in a namespace of its own: run it as root on Linux, in a container with "
            f"CAP_SYS_ADMIN. It got {tried.returncode}: {tried.stderr}"
        )
    return subprocess.run([*mounting, *command], capture_output=True, text=True)


@pytest.fixture
def shown_mounts(tmp_path: Path) -> Callable[..., Path]:
    """Writes what /proc/self/mountinfo would show of these mount points, escaped as it does."""

    def write(*points: str, kind: str = "ext4") -> Path:
        lines = [
            f"{36 + number} 35 98:0 /there {point} rw,noatime master:1 - {kind} /dev/root rw"
            for number, point in enumerate(points)
        ]
        file = tmp_path / "mountinfo"
        file.write_text("\n".join([*lines, ""]))
        return file

    return write


@pytest.mark.parametrize("name", ["jobs.db", "with space.db", "back\\slash.db"])
def test_a_file_that_is_mounted_without_its_folder_is_refused_and_left_alone(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "container").mkdir()
    on_host, mounted = tmp_path / "host" / name, tmp_path / "container" / name
    on_host.touch()
    mounted.touch()
    (tmp_path / "link.db").symlink_to(mounted)

    for path in (mounted, tmp_path / "link.db"):
        used = in_mounts(on_host, mounted, sys.executable, "-c", _USE, open_sqlite(path).url)

        told = used.stdout.splitlines()
        assert [line.partition(" ")[0] for line in told] == ["StorageError"] * 3, used
        assert all("mounted by itself, without its folder" in line for line in told)
    assert os.listdir(tmp_path / "container") == [name]
    assert on_host.stat().st_size == 0


def test_a_file_whose_folder_is_mounted_is_used(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "container").mkdir()
    url = open_sqlite(tmp_path / "container" / "jobs.db").url

    used = in_mounts(tmp_path / "host", tmp_path / "container", sys.executable, "-c", _USE, url)

    assert (used.returncode, used.stdout) == (0, "")
    assert sum(open_sqlite(tmp_path / "host" / "jobs.db").job_counts().values()) == 1


def test_a_file_on_a_local_disk_under_one_name_has_no_caveat(tmp_path: Path) -> None:
    storage = open_sqlite(tmp_path / "jobs.db")
    before = list(storage.caveats)
    storage.enqueue(Job.new("work"))

    assert before == list(storage.caveats) == []


def test_a_file_with_two_names_has_a_caveat(tmp_path: Path) -> None:
    storage: Storage = open_sqlite(tmp_path / "jobs.db")
    storage.migrate()
    os.link(tmp_path / "jobs.db", tmp_path / "copy.db")

    [caveat] = storage.caveats

    assert "2 names (hard links)" in caveat


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs"])
def test_a_file_on_a_file_system_that_machines_share_has_a_caveat(
    tmp_path: Path, kind: str, shown_mounts: Callable[..., Path]
) -> None:
    (tmp_path / "jobs.db").touch()

    [caveat] = caveats_of(str(tmp_path / "jobs.db"), mounts=shown_mounts("/", str(tmp_path), kind=kind))

    assert f"the file is on {kind}, which several machines can share" in caveat
