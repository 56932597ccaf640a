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
CREATE_TABLE = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("CREATE TABLE mine (n INTEGER)")
connection.close()
"""


def run_program(code: str, path: Path) -> str:
    """What a program of its own prints; a fork would have this process close its connections."""
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def check(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return str(connection.execute("PRAGMA integrity_check").fetchone()[0])


_STANDS_STILL = """
import fcntl, os, sys
path = sys.argv[1]
file = os.open(path, os.O_RDWR)
{}
print("ready", flush=True)
sys.stdin.read()
"""
OPENING = _STANDS_STILL.format("""
fcntl.lockf(file, fcntl.LOCK_SH, 510, 0x40000002)
log = os.open(path + "-wal", os.O_RDWR | os.O_CREAT)
""")
"""As SQLite does when it opens a file: it reads the file, and has not opened the index of the log."""
CLOSING = _STANDS_STILL.format("""
fcntl.lockf(file, fcntl.LOCK_EX, 510, 0x40000002)
index = os.open(path + "-shm", os.O_RDWR | os.O_CREAT)
fcntl.lockf(index, fcntl.LOCK_SH, 1, 128)
""")
"""As the last to close it: nobody else can read the file, the log is deleted, and its index not yet."""
