"""Tests: an app on a real SQLite storage, and a storage that no file has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qml_mp import QmlApp
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
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
def clock() -> HandClock:
    return HandClock()
