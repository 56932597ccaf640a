"""Tests of the storage: other programs that use an SQLite file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

NEWCOMER = """
import sys
from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
try:
    print(open_storage(f"sqlite:///{sys.argv[1]}").enqueue(Job.new("work")))
except StorageUnavailable as error:
    print(error)
"""
IMPATIENT = """
import sys
from datetime import timedelta
from pathlib import Path
from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from tests.storage.helpers import open_sqlite
storage = open_sqlite(Path(sys.argv[1]), patience=timedelta(milliseconds=50))
try:
    storage.enqueue(Job.new("work"))
except StorageUnavailable as error:
    print(error)
"""


def run_program(code: str, path: Path) -> str:
    """What a program of its own prints; a fork would have this process close its connections."""
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def check(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
