"""Tests: what a killed server on `memory://` leaves in shared memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.processes.apps_faults import open_files
from tests.processes.harness import Server, wait_until


def test_the_folder_of_a_killed_server_is_gone_once_the_next_server_has_started(tmp_path: Path) -> None:
    folders = [tmp_path / "killed", tmp_path / "next"]
    for folder in folders:
        folder.mkdir()
    killed = Server(url="memory://", folder=folders[0], flags=("-w", "1"))
    other = Server(url=f"sqlite:///{tmp_path / 'jobs.db'}", folder=folders[1], flags=("-w", "1"))
    try:
        killed.start(ready=None)
        wait_until(lambda: "is ready" in killed.log(), what=killed.log)
        left = wait_until(lambda: memory_folder_of(killed))
        assert left.exists()  # a server beside this test may remove it from now on
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()

        other.start()

        assert not left.exists()
        assert other.stop() == 0
    finally:
        killed.clean_up()
        other.clean_up()


def memory_folder_of(server: Server) -> Path | None:
    """Where the database that it has open lies."""
    files = (Path(file) for file in open_files(server.pid).values())
    return next((file.parent for file in files if file.name == "memory.db"), None)
