"""The parts of a test run: together they run each test once, and tell of all of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import TEMPORARY, VARIABLE
from tests.processes.harness import is_gone
from tests.until import wait_until

TESTS = """
import os, pathlib, time
import pytest

FOLDER = pathlib.Path(__file__).parent

def begin(name):
    with open(FOLDER / "begun", "a") as file:
        file.write(f"{name} {os.getpid()}\\n")

def processes():
    return {line.split()[1] for line in open(FOLDER / "begun")}

@pytest.mark.parametrize("number", range(12))
def test_of_many(number):
    begin(number)
    while len(processes()) < 3:  # or one part would run them all before the others have begun
        time.sleep(0.01)
    assert number != 2, f"what {number} says"
"""
WITH_FOLDERS = """
@pytest.mark.parametrize("number", range(12, 24))
def test_with_a_folder(number, tmp_path):
    (tmp_path / "made").touch()
    with open(FOLDER / "temporary", "a") as file:
        file.write(f"{os.getpid()} {tmp_path}\\n")
"""
PASSING = TESTS.replace("assert number != 2", "assert True") + WITH_FOLDERS
SLEEPING = TESTS.replace("assert number", "time.sleep(3600)\n    assert number")
ROOT = Path(__file__).parents[2]


def begin_run(folder: Path, tests: str) -> subprocess.Popen[str]:
    (folder / "test_many.py").write_text(tests)
    (folder / "begun").touch()
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "tests.parts", "-p", "no:cacheprovider", "--rootdir", folder,
         "-c", folder / "pytest.ini", folder],
        cwd=ROOT, env={**os.environ, VARIABLE: "3", TEMPORARY: str(folder)},
        text=True, stdout=subprocess.PIPE,
    )  # fmt: skip


def begun(folder: Path) -> list[tuple[int, int]]:
    """The numbers of the tests that have begun, and in which process."""
    lines = (folder / "begun").read_text().splitlines()
    return [(int(number), int(pid)) for number, pid in map(str.split, lines)]


def test_each_test_runs_once_in_one_of_three_processes_and_all_are_told(tmp_path: Path) -> None:
    with begin_run(tmp_path, TESTS) as run:
        shown, _ = run.communicate()
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert sorted(number for number, _ in begun(tmp_path)) == list(range(12))
    assert len({pid for _, pid in begun(tmp_path)}) == 3
    assert sum(map(int, re.findall(r"(\d+) passed", shown))) == 11
    assert "AssertionError: what 2 says" in shown


def temporary_folders(folder: Path) -> dict[int, set[Path]]:
    """In which folder of the run each process had those of its tests."""
    found: dict[int, set[Path]] = {}
    for line in (folder / "temporary").read_text().splitlines():
        pid, path = line.split(maxsplit=1)
        found.setdefault(int(pid), set()).add(Path(path).parents[2])
    return found


def test_no_part_sweeps_the_temporary_folders_of_another_and_a_run_that_passed_leaves_none(
    tmp_path: Path,
) -> None:
    with begin_run(tmp_path, PASSING) as run:
        run.communicate()
    assert run.returncode == pytest.ExitCode.OK
    folders = [folder for of_one in temporary_folders(tmp_path).values() for folder in of_one]
    assert len(folders) == len(set(folders)) == len(temporary_folders(tmp_path))  # each has one of its own
    assert not any(folder.exists() or folder.parent.exists() for folder in folders)


def test_the_temporary_folders_of_a_run_that_failed_are_left_and_told(tmp_path: Path) -> None:
    with begin_run(tmp_path, TESTS + WITH_FOLDERS) as run:
        shown, _ = run.communicate()
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    folders = {folder for of_one in temporary_folders(tmp_path).values() for folder in of_one}
    [above] = {folder.parent for folder in folders}
    assert all(list(folder.glob("*/*/test_with*/made")) for folder in folders)
    assert f"are left in {above}," in shown


def test_with_the_first_part_end_the_others(tmp_path: Path) -> None:
    with begin_run(tmp_path, SLEEPING) as run:
        wait_until(lambda: len(begun(tmp_path)) == 3)
        pids = [pid for _, pid in begun(tmp_path)]
        run.send_signal(signal.SIGTERM)
        run.communicate()  # all have closed its output
    assert run.returncode == -signal.SIGTERM
    wait_until(lambda: all(map(is_gone, pids)))
