"""Tests of the storage: an SQLite file that was taken from beside its log, and is put back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnreachable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.storage.helpers import open_sqlite
from tests.storage.sqlite_programs import NEWCOMER, run_program

JOBS = 5
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
LOOKS = _USES.format("print(storage.schema_version())")
COUNTS = _USES.format("print(sum(storage.job_counts().values()))")
COMERS = pytest.mark.parametrize(
    "comer",
    [
        pytest.param(NEWCOMER, id="producer"),
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
