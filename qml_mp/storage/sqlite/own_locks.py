"""Every process: whether it is this one that keeps the SQLite file locked (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

_LOCKS = Path("/proc/locks")
_WRITER_BYTE = "120"  # of the -shm file: what a writer locks (WAL_WRITE_LOCK in SQLite's wal.c)


def is_writing(path: str) -> bool:
    """Whether a connection of this process has a transaction that writes; False where it is not told.

    SQLite itself does not say who has a lock: POSIX locks never keep a process from its own.
    """
    try:
        inode = os.stat(f"{os.path.realpath(path)}-shm").st_ino
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return False
    # "1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120"
    wanted = ["WRITE", str(os.getpid()), str(inode), _WRITER_BYTE]
    return any(
        [kind, pid, file.rpartition(":")[2], first] == wanted
        for *_, kind, pid, file, first, _ in (line.split() for line in lines)
    )
