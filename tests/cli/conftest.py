"""Tests: a folder with an app in it, and the command that runs there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import TASKS, Qml


@pytest.fixture
def qml(tmp_path: Path) -> Qml:
    """The command in a folder with `tasks.py` and an empty settings file; no database yet."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "qml-mp.toml").touch()
    return Qml(folder=tmp_path)
