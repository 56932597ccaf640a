"""Tests: what killed processes leave of their storages in memory is removed, and nothing else is.

Whoever starts a server beside these tests may be the one that removes: what a folder holds is looked at, and
written, while its owner lives.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.storage.memory_folder import remove_orphaned_folders
from qml_mp.storage.open import open_storage
from tests.until import wait_until

MAKE_AND_WAIT = """
from qml_mp.storage.open import open_storage
storage = open_storage("memory://")
storage.job_counts()
print(storage.url, flush=True)
input()
"""


@contextmanager
def another_process() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """One that has a storage in memory, and the folder of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, Path(process.stdout.readline().strip().removeprefix("sqlite:///")).parent
    finally:
        process.kill()
        process.communicate()


@contextmanager
def another_folder() -> Iterator[tuple[Path, int]]:
    """One where those of storages in memory lie, which nobody has, and the pid of a dead process, of which
    nobody has read there while it lived."""
    with another_process() as (process, folder):
        left = folder.with_name(f"{folder.name}-left")
    left.mkdir()
    try:
        yield left, process.pid
    finally:
        shutil.rmtree(left, ignore_errors=True)


def test_the_folder_of_a_killed_process_is_removed() -> None:
    with another_process() as (process, folder):
        assert folder.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()

        open_storage("memory://")

    # A server beside this test may have begun to remove it, its owner's file first.
    assert not (folder / "owner.json").exists()
    wait_until(lambda: not folder.exists(), what=f"the end of {folder}")


def test_the_folder_of_a_living_process_stays() -> None:
    with another_process() as (_, folder):
        remove_orphaned_folders()

        assert (folder / "memory.db").exists()


@pytest.mark.parametrize("owner", ["of another machine", "unreadable", "nobody"])
def test_a_folder_whose_owner_is_not_known_to_be_dead_stays(owner: str) -> None:
    with another_folder() as (left, dead_pid):
        match owner:
            case "of another machine":
                foreign = replace(host.identity(), host="another", pid=dead_pid)
                (left / "owner.json").write_text(json.dumps(asdict(foreign)))
            case "unreadable":
                (left / "owner.json").write_text("{")
        (left / "memory.db").touch()

        remove_orphaned_folders()

        assert (left / "memory.db").exists()
