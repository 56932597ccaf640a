"""Tests: what is imported when, seen from a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

_OF_DRIVERS = {"sqlite3", "psycopg", "ssl", "socket"}
_OF_COROUTINES = {"asyncio", "ssl", "concurrent.futures", "subprocess"}
_OF_COMMANDS = {"click", "croniter", "psycopg"}


def _modules_after(code: str) -> set[str]:
    code = f"import sys\n{code}\nprint(*sys.modules)"
    return set(subprocess.check_output([sys.executable, "-c", code], text=True).split())


def test_the_package_alone_imports_nothing_of_its_own() -> None:
    modules = _modules_after("import qml_mp")

    assert {name for name in modules if name.startswith("qml_mp")} == {"qml_mp"}
    assert not modules & (_OF_DRIVERS | _OF_COROUTINES | _OF_COMMANDS | {"logging", "dataclasses"})


def test_an_app_brings_in_no_event_loop_and_no_driver_that_it_does_not_use() -> None:
    modules = _modules_after("from qml_mp import QmlApp\napp = QmlApp()\n@app.job()\ndef job(): ...")

    assert not modules & (_OF_COROUTINES | _OF_COMMANDS)


def test_the_event_loop_of_coroutines_is_imported_with_them() -> None:
    modules = _modules_after("from qml_mp import QmlApp\napp = QmlApp()\n@app.job()\nasync def job(): ...")

    assert "asyncio" in modules


@pytest.mark.parametrize("module", ["qml_mp.cli.commands.start", "qml_mp.embedding.start"])
def test_a_supervisor_has_no_event_loop(module: str) -> None:
    assert not _modules_after(f"import {module}") & (_OF_COROUTINES | {"psycopg"})
