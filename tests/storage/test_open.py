"""Tests of the storage: URLs and what they open."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.errors import ConfigurationError
from qml_mp.storage.open import open_storage
from tests.storage.helpers import in_children, open_sqlite

NO_PSYCOPG = """
import sys
sys.modules["psycopg"] = None  # what an import finds where the package cannot be loaded
from qml_mp.core.job import Job
from qml_mp.storage.open import open_storage
open_storage(sys.argv[1]).enqueue(Job.new("work"))
try:
    open_storage("postgresql://host/database")
except Exception as error:
    print(type(error).__name__, error)
"""
MAKE_IN_MEMORY = """
from qml_mp.core.job import Job
from qml_mp.storage.open import open_storage
storage = open_storage("memory://")
storage.enqueue(Job.new("work"))
print(storage.url)
"""


@pytest.mark.parametrize(
    "url",
    [
        "", "jobs.db", "sqlite://jobs.db", "sqlite:///:memory:", "sqlite:///jobs.db?mode=ro", "mysql://host/db",
    ],
)  # fmt: skip
def test_a_url_of_no_accepted_form_is_refused_with_the_forms(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:////absolute/path.db, memory://, postgresql://"):
        open_storage(url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql+asyncpg://u:S3CRET@h/db", r"leave out '\+asyncpg'"),
        ("host=h password=S3CRET dbname=db", "is a list of key=value, as libpq takes it; write it as a URL"),
        ("postgresql://h/db?shcema=S3CRET", r"'postgresql://h/db\?\*\*\*' .* knows; did you mean schema\?"),
    ],
)
def test_what_is_wrong_with_a_url_is_said(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        open_storage(url)

    assert "S3CRET" not in str(caught.value)


def test_a_password_in_a_bad_url_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_storage("postgre://user:secret@host/db")

    assert "secret" not in str(caught.value)


def test_a_relative_path_stays_where_it_was_when_the_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    storage = open_storage("sqlite:///jobs.db")

    monkeypatch.chdir(tmp_path / "elsewhere")
    storage.enqueue(Job.new("work"))

    assert (tmp_path / "jobs.db").exists()
    assert storage.url == f"sqlite:///{tmp_path}/jobs.db"


@pytest.mark.parametrize("name", ["with space.db", "100%.db", "a#b?c.db", "ä🎉.db"])
def test_the_url_of_a_storage_opens_the_same_file(tmp_path: Path, name: str) -> None:

    storage = open_sqlite(tmp_path / name)
    job_id = storage.enqueue(Job.new("work"))

    assert (tmp_path / name).exists()
    assert open_storage(storage.url).get(job_id) is not None


def test_a_name_that_is_not_utf_8_is_refused() -> None:
    url = "sqlite:////tmp/caf%E9/jobs.db"
    with pytest.raises(ConfigurationError, match="names a file whose name is not UTF-8") as caught:
        open_storage(url)

    assert url in str(caught.value)


def test_opening_touches_nothing(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    storage.close()

    assert storage.schema_version() == 0
    assert list(tmp_path.iterdir()) == []


def test_sqlite_works_without_psycopg_and_postgresql_says_what_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NO_PSYCOPG, f"sqlite:///{tmp_path}/jobs.db"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert done.stdout.startswith("ConfigurationError ")
    assert "pip install 'qml-mp[binary]'" in done.stdout
    assert sum(open_storage(f"sqlite:///{tmp_path}/jobs.db").job_counts().values()) == 1


def test_a_storage_in_memory_is_private_and_shared_with_children() -> None:
    storage = open_storage("memory://")
    storage.enqueue(Job.new("work"))
    path = storage.url.removeprefix("sqlite:///")
    storage.close()

    statuses = in_children([lambda: open_storage(storage.url).enqueue(Job.new("work"))] * 3)

    assert statuses == [0] * 3
    assert sum(storage.job_counts().values()) == 4
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_each_storage_in_memory_is_its_own() -> None:
    first, second = open_storage("memory://"), open_storage("memory://")
    first.enqueue(Job.new("work"))

    assert sum(second.job_counts().values()) == 0


def test_a_storage_in_memory_goes_with_the_process_that_made_it() -> None:
    done = subprocess.run([sys.executable, "-c", MAKE_IN_MEMORY], capture_output=True, text=True, check=True)

    path = Path(done.stdout.strip().removeprefix("sqlite:///"))
    assert path.name == "memory.db"
    assert not path.parent.exists()
