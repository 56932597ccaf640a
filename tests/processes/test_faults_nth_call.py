"""Tests: somebody dies at the first, second, third … call of the storage, until none is left to die at."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.audit import Audit
from tests.processes.nth_call import FEW, MANY, Stage, play

MOST_CALLS = 200


@pytest.fixture
def stage(storage: Storage, tmp_path: Path) -> Stage:
    storage.migrate()
    with closing(Audit(storage.url)) as audit:
        audit.install()
    return Stage(storage=storage, folder=tmp_path)


@pytest.mark.fault(2)
@pytest.mark.fault(3)
@pytest.mark.fault(5)
@pytest.mark.parametrize("side", ["call", "committed"])
@pytest.mark.parametrize("role", ["worker", "supervisor"])
@pytest.mark.parametrize("methods", [FEW, MANY], ids=["few", "many"])
def test_whoever_dies_at_whichever_call_of_the_storage_nothing_is_lost_or_run_twice_at_once(
    stage: Stage, role: str, side: str, methods: tuple[str, ...]
) -> None:
    for number in range(1, MOST_CALLS):
        faults = play(stage, f"{role}/storage.{side}=kill:{number}", methods)

        assert faults == [], f"{role}, {side} {number}"
        if not stage.mark.exists():
            break
    assert not stage.mark.exists(), "the scenario never came to its end unharmed"
    assert number > 5  # somebody did die
    if stage.storage.url.startswith("sqlite:"):
        with closing(sqlite3.connect(stage.storage.url.removeprefix("sqlite:///"))) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
