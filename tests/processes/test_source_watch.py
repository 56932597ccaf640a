"""Tests: `start --reload`: saved source files are taken over, and code that does not import is shown."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.processes.harness import Server, result_of, wait_until

CODE = """
from qml_mp import QmlApp
import {part}
app = QmlApp()
@app.job()
def version():
    return {part}.VERSION
"""


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
