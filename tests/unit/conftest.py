"""Tests: an app on a real SQLite storage, and a storage that no file has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp import QmlApp
from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.run import Run
from tests.unit.hand_clock import HandClock


@pytest.fixture
def app(tmp_path: Path) -> Iterator[QmlApp]:
    app = QmlApp(f"sqlite:///{tmp_path}/jobs.db")
    yield app
    app.close()


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = open_storage("memory://")
    yield storage
    storage.close()


@pytest.fixture
def run(storage: Storage) -> Iterator[Run]:
    """What a supervisor works with that has registered its server."""
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url=storage.url, facts=AppFacts())
    run.registration.register(storage)
    with closing(run.pool):
        yield run


@pytest.fixture
def clock() -> HandClock:
    return HandClock()
