"""Tests of the storage: where an SQLite file is mounted, and what that means for its log."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.errors import StorageError
from qml_mp.storage.sqlite.mounts import Mount, caveats_of, check_has_its_folder, mount_of
from qml_mp.storage.store import Storage
from tests.storage.helpers import open_sqlite
from tests.storage.sqlite_programs import NEWCOMER

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
_LOCKED = """
import fcntl, os, sys
from qml_mp.storage.sqlite.mounts import device_of
from qml_mp.storage.sqlite.users import _shown_locks
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX)
(shown,) = {line.split()[4] for line in _shown_locks() if line.split()[3] == str(os.getpid())}
print(shown.rpartition(":")[0] == "%02x:%02x" % device_of(sys.argv[1]))
"""
_OTHER = """
import os, sqlite3, subprocess, sys
crash, newcomer, mine, other = sys.argv[1:]
subprocess.run([sys.executable, "-c", crash, mine])
open(other, "w").close()
assert os.stat(mine).st_ino == os.stat(other).st_ino, "the two files have one number"
left = sorted(os.listdir(os.path.dirname(mine)))
for number in range(50):
    open(f"{other}.{number}", "w").close()  # but their logs have not
connection = sqlite3.connect(other)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("CREATE TABLE mine (n)")
connection.execute("SELECT * FROM mine").fetchall()
subprocess.run([sys.executable, "-c", newcomer, mine])
print(*left)
"""
_CRASH = """
import os, sys
from qml_mp.core.job import Job
from qml_mp.storage.open import open_storage
storage = open_storage(f"sqlite:///{sys.argv[1]}")
storage.enqueue(Job.new("work"))
os._exit(9)
"""
_OVERLAY = (
    'mkdir -p "$1" "$2" && mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" && '
    'mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" none "$2" && shift 2 && exec "$@"'
)
_TWO = 'mkdir -p "$1" "$2" && mount -t tmpfs none "$1" && mount -t tmpfs none "$2" && shift 2 && exec "$@"'
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


def test_a_log_left_by_a_crash_is_used_beside_a_file_of_the_same_number_on_another_disk(
    tmp_path: Path,
) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    programs = _CRASH, NEWCOMER, str(mine / "jobs.db"), str(other / "a")

    used = in_mounts(mine, other, sys.executable, "-c", _OTHER, *programs, how=_TWO)

    told, left = used.stdout.splitlines()
    assert uuid.UUID(told), used
    assert left == "jobs.db jobs.db-shm jobs.db-wal"


def test_the_device_of_a_file_is_the_one_that_its_locks_are_shown_with(tmp_path: Path) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    lower.mkdir()
    (lower / "below").touch()
    look = (sys.executable, "-c", _LOCKED)

    here = subprocess.run([*look, tmp_path / "here"], capture_output=True, text=True)
    over = [
        in_mounts(upper, lower, *look, str(lower / name), how=_OVERLAY).stdout for name in ("below", "above")
    ]

    assert [here.stdout, *over] == ["True\n"] * 3


def test_a_log_that_an_earlier_version_has_left_there_is_named(
    tmp_path: Path, shown_mounts: Callable[..., Path]
) -> None:
    path = str(tmp_path / "jobs.db")
    with pytest.raises(StorageError) as without:
        check_has_its_folder(path, mounts=shown_mounts("/", path))
    (tmp_path / "jobs.db-wal").write_text("committed")

    with pytest.raises(StorageError, match=r"copy .*jobs\.db-wal to beside that file"):
        check_has_its_folder(path, mounts=shown_mounts("/", path))

    assert "copy" not in str(without.value)


def test_a_file_is_on_the_newest_mount_above_it(shown_mounts: Callable[..., Path]) -> None:
    hidden = shown_mounts("/", "/app/jobs.db", "/app", "/application", "/app/jobs.db-wal")

    assert mount_of("/app/jobs.db", mounts=hidden) == Mount(point="/app", kind="ext4")
    check_has_its_folder("/app/jobs.db", mounts=hidden)


@pytest.mark.parametrize("text", [None, "", "\n", "36 35 98:0 / /app", "no mounts - at all"])
def test_where_mounts_are_not_told_nothing_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "mountinfo").write_text(text)

    check_has_its_folder("/nowhere/jobs.db", mounts=tmp_path / "mountinfo")

    assert mount_of("/nowhere/jobs.db", mounts=tmp_path / "mountinfo") is None


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
