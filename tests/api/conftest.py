"""Tests: an app on a real SQLite storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qml_mp import QmlApp


@pytest.fixture
def app(tmp_path: Path) -> Iterator[QmlApp]:
    app = QmlApp(f"sqlite:///{tmp_path}/jobs.db")
    yield app
    app.close()
