"""Tests of the storage: versions of the schema."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest

from qml_mp.core.job import Job
from qml_mp.errors import SchemaMismatch, StorageError
from qml_mp.storage.store import Storage
from tests import failpoints
from tests.storage.conftest import Raw
from tests.storage.helpers import in_children, open_patiently


@pytest.fixture
def storage(opened: Callable[[], Storage]) -> Storage:
    """The storage under test; nothing is there yet."""
    return opened()


def test_a_new_storage_has_no_schema_and_looking_makes_none(storage: Storage) -> None:
    assert storage.schema_version() == 0
    with pytest.raises(SchemaMismatch):
        storage.check_schema()
    assert storage.schema_version() == 0


def test_migrating_applies_each_version_once(storage: Storage) -> None:
    applied = [storage.migrate(), storage.migrate()]

    assert applied[0] == list(range(1, storage.schema_version() + 1))
    assert applied[1] == []
    storage.check_schema()


def test_the_first_use_makes_the_schema(storage: Storage) -> None:
    storage.enqueue(Job.new("work"))

    storage.check_schema()
    assert storage.migrate() == []


@pytest.mark.fault(48)
def test_of_five_starters_one_migrates_and_the_rest_wait(storage: Storage, url: str) -> None:
    def start(number: int) -> None:
        open_patiently(url).enqueue(Job.new("work", number))

    actions: list[Callable[[], None]] = [partial(start, number) for number in range(5)]
    statuses = in_children(actions)

    assert statuses == [0] * 5
    assert sum(storage.job_counts().values()) == 5
    storage.check_schema()


@pytest.mark.fault(47)
def test_a_newer_schema_is_refused_before_any_write(
    storage: Storage, opened: Callable[[], Storage], raw: Raw
) -> None:
    storage.enqueue(Job.new("work"))
    storage.close()
    raw.run(
        "INSERT INTO {schema_version} (version, applied_at) VALUES (999, ?)", raw.instant(datetime.now(UTC))
    )
    newcomer = opened()

    for refused in (
        lambda: newcomer.enqueue(Job.new("work")),
        newcomer.migrate,
        newcomer.check_schema,
        newcomer.claims,
        lambda: storage.enqueue(Job.new("work")),
    ):
        with pytest.raises(SchemaMismatch, match=r"newer than this code.*upgrade qml-mp"):
            refused()

    assert newcomer.schema_version() == 999
    assert raw.run("SELECT count(*) FROM {jobs}") == [(1,)]


def test_a_migration_that_fails_half_way_leaves_the_older_version_which_says_to_migrate(
    storage: Storage, opened: Callable[[], Storage], raw: Raw
) -> None:
    job_id, latest = storage.enqueue(Job.new("work")), storage.schema_version()
    [applied] = raw.run("SELECT version, applied_at FROM {schema_version} WHERE version = ?", latest)
    raw.run("DELETE FROM {schema_version} WHERE version = ?", latest)  # what it adds is in its way
    storage.close()
    older = opened()

    with pytest.raises(StorageError):
        older.migrate()

    assert older.schema_version() == latest - 1
    with pytest.raises(SchemaMismatch):
        older.claims()
    raw.run("INSERT INTO {schema_version} (version, applied_at) VALUES (?, ?)", *applied)
    assert older.migrate() == []
    assert older.get(job_id) is not None


@pytest.mark.fault(48)
def test_a_migration_of_a_process_that_is_killed_is_done_by_the_next(storage: Storage, url: str) -> None:
    def killed(place: str) -> Callable[[], None]:
        def migrate() -> None:
            failpoints.arm(f"{place}=kill:1")
            open_patiently(url).migrate()
            os.kill(os.getpid(), signal.SIGKILL)

        return migrate

    statuses = in_children([killed("storage.call"), killed("storage.committed")])

    assert [os.WTERMSIG(status) for status in statuses] == [signal.SIGKILL] * 2
    storage.migrate()
    storage.check_schema()
    assert storage.enqueue(Job.new("work"))
