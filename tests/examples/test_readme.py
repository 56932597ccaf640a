"""Tests: what the README says is so: its commands run, and its tables name what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp import ConfigurationError, ServerConfig, StateName
from qml_mp.cli.commands.start import start
from qml_mp.cli.main import cli
from qml_mp.settings import SETTINGS
from qml_mp.sources import load_config
from qml_mp.storage.open import open_storage
from qml_mp.units import format_duration
from tests.examples.test_examples import environment

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LAYERS = [each for each in PYPROJECT["tool"]["importlinter"]["contracts"] if each["type"] == "layers"]


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


def test_each_pip_of_the_readme_is_that_of_a_virtual_environment() -> None:
    """The Python of Debian and others refuses to install anything outside of one."""
    lines = [line for line in README.splitlines() if line.startswith("$ ")]
    pips = [number for number, line in enumerate(lines) if "pip install" in line]
    entered = lines.index("$ python3 -m venv .venv && . .venv/bin/activate")

    assert pips
    assert all(entered < number and lines[number].startswith("$ python -m pip ") for number in pips)


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


def test_the_sample_of_traces_names_what_it_needs_beside_the_extra() -> None:
    [code] = re.findall(r"```python\n(.*?)```", section("Traces"), flags=re.DOTALL)
    [named] = re.findall(r"`pip install (.*?)`", section("Traces"))
    modules = re.findall(r"^from (opentelemetry\.\S+) import", code, flags=re.MULTILINE)  # not of the API

    missing = [module for module in modules if not module.replace(".", "-").startswith(tuple(named.split()))]

    assert len(modules) == 3
    assert missing == []


def test_a_worker_that_is_out_of_memory_does_not_stop_the_service_of_the_readme() -> None:
    """As systemd does by default."""
    [unit] = re.findall(r"```ini\n(.*?)```", section("Operations"), flags=re.DOTALL)

    assert "OOMPolicy=continue" in unit.splitlines()


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


def test_every_command_and_exit_code_is_named() -> None:
    text = section("Command line")
    help_text = cli.help or ""

    commands = cli.list_commands(cli.make_context("qml-mp", ["--help"], resilient_parsing=True))
    codes = re.findall(r"(\d+) [a-z]", help_text.partition("Exit codes:")[2])

    assert [command for command in commands if not re.search(rf"`{command}\b", text)] == []
    assert [row[0] for row in rows(text) if row[0].isdigit()] == codes


def test_the_map_names_what_exists_and_all_of_the_first_level() -> None:
    """Listed are every module and folder of the first level and every package, whatever its depth. Which
    modules of a folder are worth a line is the map's to choose."""
    package = ROOT / "qml_mp"
    first_level = {path for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    packages = {path.parent for path in package.rglob("__init__.py")}

    named = the_map()

    assert [path for path in named if not path.exists()] == []
    assert len(named) == len(set(named))
    assert {
        path for path in first_level | packages if path.name not in ("__init__.py", "__pycache__")
    } <= set(named)


@pytest.mark.parametrize("contract", LAYERS, ids=lambda contract: contract["containers"][0])
def test_the_map_has_the_layers_in_the_order_that_the_linter_checks(contract: dict[str, list[str]]) -> None:
    """The contract counts from the top, the map from the bottom; between equals any order will do."""
    folder = ROOT / contract["containers"][0].replace(".", "/")
    height = {
        module: depth for depth, layer in enumerate(contract["layers"]) for module in layer.split(" | ")
    }

    mapped = [path.stem for path in the_map() if path.parent == folder]

    assert mapped == sorted(mapped, key=lambda module: -height[module])


def test_links_within_the_repository_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README + CHANGELOG)
    headings = re.findall(r"^#+ (.+)$", README, flags=re.MULTILINE)
    anchors = {"#" + heading.lower().replace(" ", "-") for heading in headings}

    local = [link for link in links if not link.startswith("https://")]

    assert [link for link in local if not (link in anchors or (ROOT / link).exists())] == []


def the_map() -> list[Path]:
    """What the map of the code names, in its order."""
    [tree] = re.findall(r"```\n(qml_mp/.*?)```", section("Map of the code"), flags=re.DOTALL)
    folders: list[str] = []
    named: list[Path] = []
    for line in tree.splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [name]
        named.append(ROOT / "/".join(folders))
    return named


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
