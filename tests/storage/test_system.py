"""Tests of the storage: what servers tell of themselves, and what the storage takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.server_description import ServerDescription, ToldLoop, ToldSetting, read_description
from qml_mp.storage.sqlite import users
from qml_mp.storage.store import Storage
from tests.storage.test_registry import server

TOLD = ServerDescription(
    app="tasks:app",
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


def test_of_servers_that_tell_their_timeout_as_this_version_does_it_is_known(storage: Storage) -> None:
    for server_id, value in (("a#1", "1m30s"), ("b#2", "very long")):
        storage.register_server(server(server_id))
        timeout = ToldSetting(name="dead_server_timeout", value=value, source="the code")
        storage.describe_server(server_id, replace(TOLD, settings=(*TOLD.settings, timeout)))
    storage.register_server(server("c#3"))

    assert storage.told_timeouts() == {"a#1": timedelta(seconds=90)}


def test_a_server_that_is_not_registered_has_nothing_to_tell(storage: Storage) -> None:
    assert not storage.describe_server("a#1", TOLD)
    assert storage.server_descriptions() == {}


def test_text_of_another_version_is_no_description() -> None:
    for text in (None, "", "{", "[]", '{"settings": [1]}', '{"loops": [["a", "b", 1]]}', '{"versions": 1}'):
        assert read_description(text) == ServerDescription()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("is_all_in_the_file", [False, True], ids=["of the log", "of the file"])
def test_a_log_that_a_reader_keeps_from_beginning_anew_is_counted_and_told_once_it_is_large(
    storage: Storage, connect: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, is_all_in_the_file: bool
) -> None:
    storage.enqueue(Job.new("m"))
    reader = connect()
    if is_all_in_the_file:
        reader.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM qml_jobs").fetchall()
    told_before = list(storage.caveats)
    storage.enqueue_many([Job.new("m", "x" * 1000) for _ in range(500)])
    monkeypatch.setattr(users, "_LARGE_LOG_BYTES", 500_000)

    sizes = {table.name: table.size_bytes for table in storage.size().tables}
    [told] = set(storage.caveats) - set(told_before)

    assert sizes["its log"] > 500_000
    assert "-wal is " in told
    if sys.platform == "linux":
        assert f"pid {os.getpid()}" in told


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_log_that_one_commit_has_made_large_is_told_without_a_word_against_who_reads_for_a_moment(
    storage: Storage, connect: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told_before = list(storage.caveats)
    storage.enqueue_many([Job.new("m", "x" * 1000) for _ in range(500)])
    monkeypatch.setattr(users, "_LARGE_LOG_BYTES", 500_000)
    reader = connect()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM qml_jobs").fetchall()
    monkeypatch.setattr(users, "time", SimpleNamespace(sleep=lambda _: reader.commit()))  # between two looks

    [told] = set(storage.caveats) - set(told_before)

    assert "perhaps one commit was that large" in told
    assert "pid" not in told


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
