"""A storage made beside another one is empty, leaves that one alone, and never stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from qml_mp.core.job import Job
from qml_mp.errors import StorageError, StorageUnreachable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.postgres_cluster import has_advisory_lock
from tests.storage.helpers import in_schema
from tests.until import wait_until

MAKE_ONE_AND_WAIT = """
import sys
from qml_mp.storage.open import open_storage
scratch = open_storage(sys.argv[1]).make_scratch()
open_storage(scratch.url).migrate()
print(scratch.url, flush=True)
sys.stdin.read()
"""


def test_it_is_an_empty_storage_and_the_other_one_is_not_touched(
    url: str, there: Callable[[str], bool]
) -> None:
    with closing(open_storage(url)) as beside:
        scratch = beside.make_scratch()
        with closing(open_storage(scratch.url)) as storage:
            job_id = storage.enqueue(Job.new("work"))
            job = storage.get(job_id)
        assert there(scratch.url)

        scratch.remove()
        scratch.remove()

        assert job is not None
        assert not there(scratch.url)
        assert beside.schema_version() == 0


def test_one_that_is_in_use_is_left_alone_by_the_next(storage: Storage, there: Callable[[str], bool]) -> None:
    with another_process(storage.url) as (first_url, _):
        second = storage.make_scratch()

        assert there(first_url)

        second.remove()


def test_what_a_killed_process_left_is_removed_by_the_next(
    storage: Storage, there: Callable[[str], bool], postgres_url: str
) -> None:
    with another_process(storage.url) as (first_url, process):
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert there(first_url)
    wait_until(lambda: not has_advisory_lock(postgres_url), what="the end of its session, which has the lock")

    second = storage.make_scratch()

    assert not there(first_url)
    second.remove()


def test_what_only_looks_like_one_stays(tmp_path: Path) -> None:
    (tmp_path / "qml-mp-bench-notes").write_text("a file")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "qml-mp-bench-results").mkdir()
    (tmp_path / "qml-mp-bench-results" / "bench.db").write_text("of the user's")
    (tmp_path / "qml-mp-bench-link").symlink_to(tmp_path / "elsewhere")

    open_storage(f"sqlite:///{tmp_path}/jobs.db").make_scratch().remove()

    assert {path.name for path in tmp_path.iterdir()} == {
        "qml-mp-bench-notes",
        "elsewhere",
        "qml-mp-bench-link",
        "qml-mp-bench-results",
    }
    assert (tmp_path / "qml-mp-bench-results" / "bench.db").read_text() == "of the user's"


def test_one_whose_removal_was_broken_off_is_removed_by_the_next(tmp_path: Path) -> None:
    beside = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    scratch = beside.make_scratch()
    left = tmp_path / "qml-mp-bench-left-gone"
    left.mkdir()
    shutil.copy(Path(scratch.place) / "made-by-qml-mp-bench", left)

    beside.make_scratch().remove()

    assert [str(path) for path in tmp_path.iterdir()] == [scratch.place]
    scratch.remove()


def test_while_one_is_removed_nobody_who_still_uses_it_makes_its_file_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the guardian of a killed server would, which has an outcome to write."""
    scratch = open_storage(f"sqlite:///{tmp_path}/jobs.db").make_scratch()
    with closing(open_storage(scratch.url)) as storage:
        storage.migrate()
    rmdir, late = os.rmdir, []

    def rmdir_late(path: str, **given: Any) -> None:
        late.append(path)
        with closing(open_storage(scratch.url)) as storage, suppress(StorageError):
            storage.enqueue(Job.new("work"))
        rmdir(path, **given)

    monkeypatch.setattr(os, "rmdir", rmdir_late)
    scratch.remove()

    assert late
    assert list(tmp_path.iterdir()) == []


def test_it_lies_on_the_disk_of_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "jobs.db").symlink_to(tmp_path / "disk" / "jobs.db")

    scratch = open_storage(f"sqlite:///{tmp_path}/jobs.db").make_scratch()

    assert Path(scratch.place).parent == tmp_path / "disk"
    scratch.remove()


def test_a_place_where_no_folder_can_be_made_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageUnreachable, match=r"No folder can be made in .*No such file or directory"):
        open_storage(f"sqlite:///{tmp_path}/missing/jobs.db").make_scratch()


def test_a_role_that_may_make_no_schema_is_told_so(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute("CREATE ROLE qml_reader LOGIN")
        try:
            url = f"postgresql://qml_reader@{admin.info.host}:{admin.info.port}/{admin.info.dbname}"

            with pytest.raises(StorageError, match="'qml_reader' may not create a schema") as refused:
                open_storage(url).make_scratch()
        finally:
            admin.execute("DROP ROLE qml_reader")

    assert "GRANT CREATE" in str(refused.value)


def test_a_server_that_does_not_sync_is_told_of(postgres_url: str) -> None:
    url = in_schema(postgres_url, "unused") + "&options=-c%20synchronous_commit%3Doff"

    scratch = open_storage(url).make_scratch()

    assert any("synchronous_commit is off" in sentence for sentence in scratch.caveats)
    scratch.remove()


@pytest.fixture
def there(postgres_url: str) -> Callable[[str], bool]:
    """Whether anything is left of the scratch of that URL."""

    def look(url: str) -> bool:
        if url.startswith("sqlite:"):
            return os.path.exists(os.path.dirname(url.removeprefix("sqlite:///")))
        with psycopg.connect(postgres_url) as connection:
            schema = url.rpartition("schema=")[2]
            found = connection.execute(
                "SELECT count(*) FROM pg_namespace WHERE nspname = %s", [schema]
            ).fetchone()
        return found == (1,)

    return look


@contextmanager
def another_process(url: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process that holds a scratch beside the storage of that URL; the scratch's URL, and the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_ONE_AND_WAIT, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()
