"""Tests of the storage: who has an SQLite file open, on a machine where many locks come and go."""

from __future__ import annotations

import fcntl
import io
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from qml_mp.storage.sqlite import users

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells nobody who has a lock")

_LOCKS = "/proc/locks"
_MANY = 5


class Others:
    """Locks that come and go, in the place of those of other programs."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._count = 0

    def lock(self, count: int) -> None:
        for _ in range(count):
            fcntl.lockf(self._file, fcntl.LOCK_SH, 1, 2 * self._count)  # two that touch would be shown as one
            self._count += 1

    def unlock(self, count: int) -> None:
        for _ in range(count):
            self._count -= 1
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 2 * self._count)


class Unsteady(io.FileIO):
    """What the kernel shows of locks; some of them go once that many pages were read, and come back."""

    def __init__(self, others: Others, pages: int) -> None:
        super().__init__(_LOCKS)
        self._others = others
        self._pages = pages

    def read(self, size: int | None = -1, /) -> bytes:
        page = super().read(size)
        self._pages -= 1
        if self._pages == 0:
            self._others.unlock(_MANY)
        if not page and self._pages <= 0:
            self._others.lock(_MANY)
        return page


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Others]:
    """Their locks are shown before all that this process had locked before."""
    processors = os.sched_getaffinity(0)
    file = os.open(tmp_path / "others", os.O_RDWR | os.O_CREAT)
    try:
        os.sched_setaffinity(0, {min(processors)})  # by processor, and of each the newest first
        yield Others(file)
    finally:
        os.sched_setaffinity(0, processors)
        os.close(file)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[str]:
    """An SQLite file that this process reads in a transaction."""
    path = str(tmp_path / "jobs.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (
            "PRAGMA journal_mode = WAL",
            "CREATE TABLE mine (n)",
            "PRAGMA wal_checkpoint(PASSIVE)",
            "BEGIN",
            "SELECT n FROM mine",
        ):
            connection.execute(statement).fetchall()
        yield path


def is_told_as_reader(path: str) -> bool:
    return any(f"pid {os.getpid()}" in told for told in users.large_logs(path))


def is_missed_with_its_log(path: str) -> bool:
    os.unlink(users.log_of(path))
    return users.has_lost_its_log(path)


def put_at_a_border(lock: str, others: Others) -> int:
    """Have so many locks that this one is among the first of a page; the number of pages before it."""
    others.lock(_MANY)
    for _ in range(1000):
        with open(_LOCKS, "rb", buffering=0) as shown:
            pages = [page.decode().splitlines() for page in iter(lambda: shown.read(8192), b"")]
        for number, page in enumerate(pages[1:], 1):
            if any(line.endswith(lock) for line in page[1 : _MANY - 1]):
                return number
        others.lock(1)
    numbers = [number for number, page in enumerate(pages) if any(line.endswith(lock) for line in page)]
    raise AssertionError(f"{lock} comes to no border; of {len(pages)} pages it is on {numbers}")


@pytest.mark.parametrize(
    ("behind_name", "locked", "is_seen"),
    [
        ("-shm", "123 123", is_told_as_reader),
        ("-shm", "128 128", users.is_in_use),
        ("", f"{0x40000002} {0x40000002 + 509}", is_missed_with_its_log),
    ],
    ids=["a reader", "a user", "a user of a lost log"],
)
def test_who_has_a_lock_is_seen_although_others_unlock_while_a_long_list_of_locks_is_read(
    path: str,
    others: Others,
    monkeypatch: pytest.MonkeyPatch,
    behind_name: str,
    locked: str,
    is_seen: Callable[[str], bool],
) -> None:
    lock = f":{os.stat(path + behind_name).st_ino} {locked}"
    pages_before = put_at_a_border(lock, others)
    monkeypatch.setattr(users, "_LARGE_LOG_BYTES", 0)
    monkeypatch.setattr(
        users, "_LOCKS", SimpleNamespace(open=lambda *_, **__: Unsteady(others, pages_before))
    )

    assert is_seen(path)
