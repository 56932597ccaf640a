"""Tests of the storage: versions of the schema."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import pytest

from qml_mp.core.job import Job
from qml_mp.errors import SchemaMismatch
from qml_mp.storage.migrate import Migration, check_version, latest_version, pending
from qml_mp.storage.store import Storage
from tests.storage.conftest import Raw
from tests.storage.helpers import in_children, open_patiently

TWO = (Migration(version=1, sql="one"), Migration(version=2, sql="two"))


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


def test_an_older_schema_says_to_migrate() -> None:
    with pytest.raises(SchemaMismatch, match=r"older than this code.*qml-mp migrate"):
        check_version(TWO, found=1, where="here")

    assert pending(TWO, found=1, where="here") == [TWO[1]]
    assert pending(TWO, found=0, where="here") == list(TWO)
    assert latest_version(TWO) == 2
    check_version(TWO, found=2, where="here")
