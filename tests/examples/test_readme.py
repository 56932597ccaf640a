"""Tests: what the README shows runs, and its table of settings is that of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp import ConfigurationError, ServerConfig, StateName
from qml_mp.cli.commands.start import start
from qml_mp.settings import SETTINGS
from qml_mp.sources import load_config
from qml_mp.storage.open import open_storage
from qml_mp.units import format_duration
from tests.examples.test_examples import environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_quick_start_runs_as_pasted_in_an_empty_folder(tmp_path: Path) -> None:
    [script] = re.findall(r"```sh\n(.*?)```", section("Quick start"), flags=re.DOTALL)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env={**environment(), "PATH": path},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    assert sum("succeeded" in line for line in ended.stdout.splitlines()) == 3
    storage = open_storage(f"sqlite:///{tmp_path}/jobs.db")
    assert storage.job_counts()[StateName.SUCCEEDED] == 3
    storage.close()


def test_the_refusal_that_the_quick_start_shows_is_worded_so(tmp_path: Path) -> None:
    [code] = re.findall(r"tasks.py <<'END'\n(.*?)END", section("Quick start"), flags=re.DOTALL)
    [(arguments, told)] = re.findall(r"\$ qml-mp (.*)\n(qml-mp: error: .*\n)", section("Quick start"))
    (tmp_path / "tasks.py").write_text(code)

    ended = subprocess.run(
        [sys.executable, "-m", "qml_mp", *arguments.split()],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert ended.stderr == told


def test_the_python_of_the_readme_runs(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", section("In Python"), flags=re.DOTALL)

    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "deleted\n", "")


def test_a_server_that_imports_the_python_of_the_readme_enqueues_nothing(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", section("In Python"), flags=re.DOTALL)
    (tmp_path / "tasks.py").write_text(code)

    ended = subprocess.run(
        [sys.executable, "-m", "qml_mp", "-A", "tasks:app", "check"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert ended.returncode == 0, ended.stdout
    assert "tasks:app imports. Methods: resize, welcome, digest" in ended.stdout
    assert not (tmp_path / "jobs.db").exists()


def test_the_settings_table_has_every_setting_with_its_default_environment_name_and_flag() -> None:
    flags = {option.name: option.opts + option.secondary_opts for option in start.params}
    defaults = ServerConfig()

    told = [row[:2] + row[3:] for row in rows(section("Settings"))]

    assert told == [
        [
            f"`{name}`",
            shown(getattr(defaults, name)),
            f"`QML_MP_{name.upper()}`",
            ", ".join(f"`{flag}`" for flag in flags.get(name, ())),
        ]
        for name in SETTINGS
    ]


@pytest.mark.parametrize("field", SETTINGS)
def test_the_environment_names_of_the_settings_table_are_read(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = next(row[3] for row in rows(section("Settings")) if row[0] == f"`{field}`").strip("`")
    monkeypatch.setenv(variable, "what is no value!")

    with pytest.raises(ConfigurationError, match=variable):
        load_config(flags={}, code=None)


def section(heading: str) -> str:
    """The text under a heading of the second level."""
    return README.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in the text, without their headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row, after in zip(cells, [*lines[1:], ""], strict=True) if not is_rule(after, row)]


def is_rule(after: str, row: Sequence[str]) -> bool:
    """Whether the row is a table's heading (a rule comes after it) or the rule itself."""
    return after.startswith("|---") or row[0].startswith("---")


def shown(value: object) -> str:
    """A default as the table shows it."""
    match value:
        case bool():
            return "on" if value else "off"
        case None:
            return "none"
        case timedelta():
            return format_duration(value)
        case tuple():
            return ",".join(map(str, value))
        case _:
            return str(value)
