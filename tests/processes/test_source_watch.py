"""Tests: `start --reload`: saved source files are taken over, and code that does not import is shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.declarations import DeclarationsLoop
from qml_mp.supervisor.parts.reload import NewCode, Reload
from qml_mp.supervisor.parts.source_watch import SourceWatch
from qml_mp.supervisor.run import Run
from tests.processes.harness import Server, result_of, wait_until

SOURCE = NamedProgram(spec="an:app")
START = datetime(2026, 1, 1, tzinfo=UTC)
CODE = """
from qml_mp import QmlApp
import {part}
app = QmlApp()
@app.job()
def version():
    return {part}.VERSION
"""


class HandClock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds


class CountedReload(Reload):
    """Tells how often it was asked, and looks at nothing."""

    asked = 0

    def begin(self) -> None:
        self.asked += 1


def save(file: Path, text: str, clock: HandClock) -> None:
    file.write_text(text)
    at = clock.now().timestamp()
    os.utime(file, (at, at))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def run(clock: HandClock) -> Iterator[Run]:
    run = Run(ServerConfig(worker_count=0), SOURCE, url="memory://", facts=AppFacts(), clock=clock)
    yield run
    run.pool.close()


@pytest.fixture
def file(tmp_path: Path, clock: HandClock) -> Path:
    """Saved before the code was read, at second 10."""
    file = tmp_path / "tasks.py"
    save(file, "1", clock)
    clock.seconds = 10.0
    return file


@pytest.fixture
def reload(run: Run, file: Path) -> CountedReload:
    code = NewCode(watch_since=run.clock.now(), files=[str(file)])
    return CountedReload(run, SOURCE, new_code=code, declarations=DeclarationsLoop(run))


def look(watch: SourceWatch, clock: HandClock) -> None:
    clock.seconds = max(clock.seconds, watch.next_at())
    watch.turn()


def test_a_file_that_has_changed_and_stays_so_is_reloaded_once(
    run: Run, reload: CountedReload, file: Path, clock: HandClock
) -> None:
    watch = SourceWatch(run, reload)
    look(watch, clock)
    save(file, "22", clock)
    look(watch, clock)
    while_it_changes = reload.asked
    save(file, "333", clock)
    look(watch, clock)
    still = reload.asked
    for _ in range(5):
        look(watch, clock)

    assert (while_it_changes, still, reload.asked) == (0, 0, 1)


def test_what_was_saved_while_the_code_was_read_counts_as_changed(
    run: Run, reload: CountedReload, file: Path, clock: HandClock
) -> None:
    clock.seconds = 11.0
    save(file, "2", clock)
    watch = SourceWatch(run, reload)
    for _ in range(3):
        look(watch, clock)

    assert reload.asked == 1


def test_a_file_that_is_gone_counts_as_changed(
    run: Run, reload: CountedReload, file: Path, clock: HandClock
) -> None:
    watch = SourceWatch(run, reload)
    look(watch, clock)
    file.unlink()
    for _ in range(3):
        look(watch, clock)

    assert reload.asked == 1


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_saved_code_is_taken_over_and_what_does_not_import_is_shown(
    server: Callable[..., Server], storage: Storage, tmp_path: Path
) -> None:
    names = ("app", "first", "second", "third")
    main, first, second, third = (tmp_path / f"living_{name}.py" for name in names)
    first.write_text("VERSION = 1\n")
    second.write_text("VERSION = (\n")
    main.write_text(CODE.format(part="living_first"))
    for file in (main, first):
        os.utime(file, (0, 0))  # one that was written just before it is read may have been so just after, too
    one = server(
        "-w", "1", "--reload", app="living_app:app", PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE="1"
    ).start()  # fmt: skip
    before = result_of(storage, "version")

    first.write_text("VERSION = 22\n")
    wait_until(lambda: result_of(storage, "version") == 22, what=one.log)
    main.write_text(CODE.format(part="living_second"))
    wait_until(lambda: "SyntaxError: '(' was never closed" in one.log())
    meanwhile = result_of(storage, "version")
    second.write_text("VERSION = 333\n")  # which was never imported

    wait_until(lambda: result_of(storage, "version") == 333, what=one.log)
    main.write_text(CODE.format(part="living_third"))
    wait_until(lambda: "No module named 'living_third'" in one.log())
    third.write_text("VERSION = 4444\n")  # which was not there
    wait_until(lambda: result_of(storage, "version") == 4444, what=one.log)
    main.write_text(CODE.format(part="living_fourth.part"))
    wait_until(lambda: "No module named 'living_fourth'" in one.log())
    (tmp_path / "living_fourth").mkdir()  # without __init__.py
    (tmp_path / "living_fourth" / "part.py").write_text("VERSION = 55555\n")
    wait_until(lambda: result_of(storage, "version") == 55555, what=one.log)
    assert (before, meanwhile) == (1, 22)
    assert "so the workers stay as they are. Mend it, and save it:" in one.log()
    assert one.stop() == 0
