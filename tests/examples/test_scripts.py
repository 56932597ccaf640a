"""Tests: what the scripts share finds its place, and makes an environment that belongs to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.examples.test_examples import ROOT, environment

_PATIENCE_S = 300  # bounds a shell that hangs, and judges nothing


def sourced(line: str, *, clone: Path = ROOT, env: dict[str, str] | None = None) -> tuple[str, str]:
    """Standard output and error of the line, run beside the functions of the clone's `scripts/lib.sh`."""
    ended = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"source scripts/lib.sh; {line}"],
        cwd=clone, env=env or environment(), capture_output=True, text=True, timeout=_PATIENCE_S, check=True,
    )  # fmt: skip
    return ended.stdout, ended.stderr


def test_folders_that_the_shell_looks_in_for_cd_do_not_lead_astray(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()

    told = sourced('printf %s "$ROOT"', env={**environment(), "CDPATH": str(tmp_path)})

    assert told == (str(ROOT.resolve()), "")


def test_a_user_without_a_home_finds_a_python() -> None:
    homeless = {name: value for name, value in environment().items() if name not in ("HOME", "PYENV_ROOT")}

    out, err = sourced("python_candidates 3.11", env=homeless)

    assert "/usr/bin/python3.11" in out.splitlines()
    assert err == ""


def test_the_environment_of_a_clone_that_was_moved_is_made_anew(tmp_path: Path) -> None:
    """Its programs name the folder that they were installed in."""
    before, after = tmp_path / "before", tmp_path / "after"
    (before / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "lib.sh", before / "scripts")
    python = tmp_path / "python"  # to install pip takes seconds, and shows no more
    python.write_text(
        f'#!/bin/sh\n[ "$2" = venv ] && set -- "$@" --without-pip\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    make = f'begin_venv {python} "$ROOT/.venv" "for a test"'

    sourced(make, clone=before)
    (before / ".venv" / "bin" / "program").touch()
    sourced(make, clone=before)
    is_kept = (before / ".venv" / "bin" / "program").exists()
    os.rename(before, after)
    sourced(make, clone=after)

    assert is_kept
    assert (after / ".venv" / "bin" / "python").exists()
    assert not (after / ".venv" / "bin" / "program").exists()


def test_where_postgresql_cannot_be_installed_all_runs_on_that_of_the_wheel(tmp_path: Path) -> None:
    for name, code in {"id": "echo 0", "apt-get": "exit 100"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    env = {**environment(), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    env = {name: value for name, value in env.items() if not name.startswith("QML_MP_TEST_")}

    out, err = sourced("bring_postgres false", env=env)

    assert out == ""
    assert err.splitlines()[-1] == "Everything runs on the PostgreSQL of the wheel."
