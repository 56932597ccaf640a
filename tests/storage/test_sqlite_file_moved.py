"""Tests of the storage: an SQLite file that was taken from beside its log, and is put back."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable, StorageUnreachable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.helpers import open_sqlite
from tests.storage.sqlite_programs import NEWCOMER, check, run_program

JOBS = 5
KILLED = f"""
import os, signal, sys
from qml_mp.core.job import Job
from qml_mp.storage.open import open_storage
storage = open_storage(f"sqlite:///{{sys.argv[1]}}")
storage.enqueue_many(Job.new("work") for _ in range({JOBS}))
os.kill(os.getpid(), signal.SIGKILL)
"""
_USES = """
import sqlite3, sys
from contextlib import closing
from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
storage = open_storage(f"sqlite:///{{sys.argv[1]}}")
try:
    {}
except StorageUnavailable as error:
    print(error)
"""
WORKER = _USES.format('storage.expect_schema(); print(storage.enqueue(Job.new("work")))')
MIGRATES = _USES.format("print(storage.migrate())")
LOOKS = _USES.format("print(storage.schema_version())")
IN_A_TRANSACTION = _USES.format(
    "with closing(sqlite3.connect(sys.argv[1])) as own: storage.enqueue_in(own, [Job.new('work')])"
)
COUNTS = _USES.format("print(sum(storage.job_counts().values()))")
COMERS = pytest.mark.parametrize(
    "comer",
    [
        pytest.param(NEWCOMER, id="producer"),
        pytest.param(WORKER, id="worker"),
        pytest.param(MIGRATES, id="migrate"),
        pytest.param(LOOKS, id="reader"),
    ],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder / "jobs.db"


@pytest.fixture
def aside(tmp_path: Path) -> Path:
    """Where the file is meanwhile."""
    return tmp_path / "aside.db"


@pytest.fixture
def storage(path: Path) -> Iterator[Storage]:
    """One that has it open."""
    with closing(open_sqlite(path)) as opened:
        opened.enqueue_many(Job.new("work") for _ in range(JOBS))
        yield opened


def leave_a_log(path: Path) -> None:
    """What is there once a process that had jobs in the log was killed."""
    ended = subprocess.run([sys.executable, "-c", KILLED, path], timeout=60)
    assert ended.returncode == -signal.SIGKILL


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.mark.fault(44)
@COMERS
def test_who_comes_while_a_file_that_others_use_is_elsewhere_makes_none(
    storage: Storage, path: Path, aside: Path, comer: str
) -> None:
    path.rename(aside)

    told = run_program(comer, path)

    assert "deleted or replaced" in told
    assert names_in(path.parent) == {"jobs.db-wal", "jobs.db-shm"}
    aside.rename(path)
    assert sum(storage.job_counts().values()) == JOBS
    assert run_program(COUNTS, path).strip() == str(JOBS)


@pytest.mark.fault(44)
@pytest.mark.parametrize("is_empty_one_there", [False, True], ids=["none", "empty"])
@COMERS
def test_who_comes_while_the_file_of_a_log_is_elsewhere_leaves_the_log(
    path: Path, aside: Path, comer: str, is_empty_one_there: bool
) -> None:
    leave_a_log(path)
    path.rename(aside)
    if is_empty_one_there:
        path.touch()
    before = names_in(path.parent)

    told = run_program(comer, path)

    assert "deleted or replaced" in told or f"its log {path}-wal, with what was committed last" in told
    assert names_in(path.parent) == before
    aside.rename(path)
    assert run_program(COUNTS, path).strip() == str(JOBS)
    assert check(path) == "ok"


@pytest.mark.fault(44)
def test_a_transaction_of_the_caller_takes_no_log_for_left_over_either(path: Path, aside: Path) -> None:
    leave_a_log(path)
    path.rename(aside)

    told = run_program(IN_A_TRANSACTION, path)

    assert "with what was committed last" in told
    aside.rename(path)
    assert run_program(COUNTS, path).strip() == str(JOBS)


@pytest.mark.fault(44)
def test_a_copy_that_is_put_back_has_what_was_in_the_log_when_the_file_was_deleted(
    storage: Storage, path: Path, aside: Path
) -> None:
    subprocess.run(["cp", path, aside], check=True)  # from here it would take away the locks
    path.unlink()
    with pytest.raises(StorageUnavailable, match="deleted or replaced"):
        storage.enqueue(Job.new("work"))
    storage.close()

    shutil.move(aside, path)

    assert run_program(COUNTS, path).strip() == str(JOBS)
    assert check(path) == "ok"


@pytest.mark.fault(44)
@pytest.mark.parametrize("is_another_there", [False, True])
def test_what_was_there_for_whoever_started_a_process_is_not_made_by_it(
    path: Path, is_another_there: bool
) -> None:
    if is_another_there:
        with closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE mine (n INTEGER)")
    before = names_in(path.parent)

    with closing(open_storage(f"sqlite:///{path}")) as worker:
        worker.expect_schema()
        for use in (worker.job_counts, worker.schema_version, lambda: worker.enqueue(Job.new("work"))):
            with pytest.raises(StorageUnreachable, match="deleted or replaced"):
                use()

    assert names_in(path.parent) == before


def test_a_file_whose_log_went_with_it_is_made_anew_by_who_comes_next(path: Path) -> None:
    leave_a_log(path)
    for file in list(path.parent.iterdir()):
        file.unlink()

    run_program(NEWCOMER, path)

    assert run_program(COUNTS, path).strip() == "1"
