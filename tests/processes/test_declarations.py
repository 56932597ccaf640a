"""Tests: of two releases that run side by side, the one that was started or reloaded last has its way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.processes.harness import Server, wait_until
from tests.storage_rows import hooks_of

MakeServer = Callable[..., Server]
OLD = """
from qml_mp import QmlApp
app = QmlApp()
@app.job(max_running=3, rate="7/m")
def work():
    pass
"""
NEW = OLD.replace("3", "1") + "@app.on_failure\ndef tell(job, error):\n    pass\n"


@pytest.fixture
def release(server: MakeServer, tmp_path: Path) -> Callable[[str, str], Server]:
    """Makes servers of `releases_app:app`, each with code of its own."""

    def make(name: str, code: str) -> Server:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "releases_app.py").write_text(code)
        return server(
            "-w", "1", app="releases_app:app", PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1"
        )  # fmt: skip

    return make


def limits(storage: Storage) -> list[tuple[str, int | None, str]]:
    standings = storage.standings()
    return [(each.limit.name, each.limit.max_running, str(each.limit.rate)) for each in standings]


def has_hook(storage: Storage) -> bool:
    """Whether failures of the method are to be told."""
    return any(calls for calls, _ in hooks_of(storage, "work").values())


def test_a_worker_of_older_code_that_is_replaced_declares_nothing(
    release: Callable[[str, str], Server], storage: Storage
) -> None:
    old = release("old", OLD).start()
    assert limits(storage) == [("work", 3, "7/m")]
    new = release("new", NEW).start()
    assert limits(storage) == [("work", 1, "7/m")]
    pid = old.worker_pids()[1]

    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: old.worker_pids().get(1, pid) != pid, what=old.log)

    assert old.stop() == 0
    assert limits(storage) == [("work", 1, "7/m")]
    assert has_hook(storage)
    assert new.stop() == 0


def test_a_reload_declares_what_the_new_code_says(
    release: Callable[[str, str], Server], storage: Storage
) -> None:
    one = release("one", OLD).start()
    assert limits(storage) == [("work", 3, "7/m")]
    release("one", NEW)

    one.signal(signal.SIGHUP)

    wait_until(lambda: limits(storage) == [("work", 1, "7/m")], what=one.log)
    wait_until(lambda: has_hook(storage), what=one.log)
    assert one.stop() == 0
