"""Tests: a folder with an app in it, and the command that runs there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.cli.command import TASKS, Qml
from tests.storage.helpers import open_patiently


@pytest.fixture
def qml(tmp_path: Path) -> Qml:
    """The command in a folder with `tasks.py` and an empty settings file; no database yet."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "qml-mp.toml").touch()
    return Qml(folder=tmp_path)


@pytest.fixture
def storage(qml: Qml) -> Iterator[Storage]:
    """The storage that the command looks at."""
    storage = open_patiently(f"sqlite:///{qml.database}")
    storage.migrate()
    yield storage
    storage.close()
