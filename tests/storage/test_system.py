"""Tests of the storage: what servers tell of themselves, and what the storage takes."""

from __future__ import annotations

from datetime import UTC, datetime

from qml_mp.core.job import Job
from qml_mp.core.server_description import ServerDescription, ToldLoop, ToldSetting, read_description
from qml_mp.storage.store import Storage
from tests.storage.test_registry import server

TOLD = ServerDescription(
    versions={"qml-mp": "1.2", "Python": "3.11"},
    settings=(ToldSetting(name="job_timeout", value="5m", source="QML_MP_JOB_TIMEOUT"),),
    loops=(
        ToldLoop(name="heartbeat", succeeded_at=datetime(2026, 1, 2, tzinfo=UTC), is_failing=False),
        ToldLoop(name="settle", succeeded_at=None, is_failing=True),
    ),
)


def test_what_a_server_tells_of_itself_is_read_back(storage: Storage) -> None:
    storage.register_server(server("a#1"))
    storage.register_server(server("b#2"))

    assert storage.describe_server("a#1", TOLD)

    assert storage.server_descriptions() == {"a#1": TOLD, "b#2": ServerDescription()}


def test_a_server_that_is_not_registered_has_nothing_to_tell(storage: Storage) -> None:
    assert not storage.describe_server("a#1", TOLD)
    assert storage.server_descriptions() == {}


def test_text_of_another_version_is_no_description() -> None:
    for text in (None, "", "{", "[]", '{"settings": [1]}', '{"loops": [["a", "b", 1]]}', '{"versions": 1}'):
        assert read_description(text) == ServerDescription()


def test_the_size_grows_with_the_jobs_and_names_the_database(storage: Storage) -> None:
    storage.enqueue(Job.new("m", "x"))
    before = storage.size()

    storage.enqueue_many([Job.new("m", "x" * 1000) for _ in range(500)])

    after = storage.size()
    assert after.size_bytes > before.size_bytes + 500_000
    assert after.version.startswith(("SQLite 3.", "PostgreSQL "))
    assert sum(table.size_bytes for table in after.tables) == after.size_bytes
    assert [table.size_bytes for table in after.tables] == sorted(
        (table.size_bytes for table in after.tables), reverse=True
    )
