"""Tests of the storage: when what is committed to an SQLite file is on the disk, and a disk that fails."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnreachable
from qml_mp.storage.sqlite import disk
from qml_mp.storage.store import Storage
from tests.storage.helpers import DONE, KEEP, claim_new, open_sqlite, present

Before = Callable[[], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def storage(path: Path) -> Iterator[Storage]:
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
    storage: Storage, path: Path, before_disk: Callable[[Before], None]
) -> None:
    seen = []

    def look() -> None:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
            other.execute("BEGIN IMMEDIATE")  # raises while the lock is held
            seen.append(rows(path))

    before_disk(look)

    storage.enqueue(Job.new("work"))
    storage.enqueue_many(Job.new("work", n) for n in range(3))

    assert seen == [1, 4]


def test_every_step_of_a_job_waits_for_the_disk_and_what_changes_nothing_does_not(
    storage: Storage, before_disk: Callable[[Before], None]
) -> None:
    waits = []
    before_disk(lambda: waits.append(len(waits)))

    claim = claim_new(storage)
    assert len(waits) == 2
    storage.finish(claim, DONE, retention=KEEP)
    assert len(waits) == 3
    storage.finish(claim, DONE, retention=KEEP)
    storage.promote_due(limit=10)
    assert len(waits) == 3


def test_who_is_told_of_the_job_that_has_the_key_has_waited_for_the_disk_too(
    storage: Storage, path: Path, before_disk: Callable[[Before], None]
) -> None:
    waits, told = list[int](), list[str]()

    def look() -> None:
        waits.append(len(waits))
        if len(waits) == 1:  # the first job is committed, and not on the disk yet
            with closing(open_sqlite(path)) as other:
                told.extend(other.enqueue_many([Job.new("work", unique_key="k")]))

    before_disk(look)

    first = storage.enqueue(Job.new("work", unique_key="k"))

    assert told == [first]
    assert len(waits) == 2


def test_an_outcome_that_the_disk_refused_is_told_once_it_is_stored_anew(
    storage: Storage, path: Path, before_disk: Callable[[Before], None], tmp_path: Path
) -> None:
    claim = claim_new(storage)
    before_disk(fail)
    with pytest.raises(StorageUnreachable, match="disk reported an error"):
        storage.finish(claim, DONE, retention=KEEP)
    before_disk(lambda: None)

    assert storage.finish(claim, DONE, retention=KEEP).accepted

    # The kernel may have taken the log for written: what counts is in the file by itself now.
    alone = shutil.copy(path, tmp_path / "alone.db")
    with closing(open_sqlite(Path(alone))) as copy:
        assert present(copy, claim).state_name is StateName.SUCCEEDED


def test_while_the_file_cannot_take_what_the_disk_refused_nothing_is_told(
    storage: Storage, path: Path, before_disk: Callable[[Before], None]
) -> None:
    claim = claim_new(storage)
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM qml_jobs").fetchall()  # as of now: the log has to stay as long
        before_disk(fail)
        with pytest.raises(StorageUnreachable):
            storage.finish(claim, DONE, retention=KEEP)
        before_disk(lambda: None)

        with pytest.raises(StorageUnreachable):
            storage.finish(claim, DONE, retention=KEEP)

    assert storage.finish(claim, DONE, retention=KEEP).accepted
