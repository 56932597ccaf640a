"""Every process: connections to an SQLite file that were open when this process was forked.

SQLite notes within a process which locks that has on a file, once for all its connections. After a fork the
child has the notes, and POSIX has left the locks to the parent: what the child opens takes none, and the next
process that closes the file deletes the log and its index under it. So the child must not use the file, as
long as it has what it has inherited.

Looked at is which locks there are, and not what was forked how: the kernel shows those of a process with the
file that has them. Where it does not (not Linux, some file systems of FUSE), this is never found. The one is
looked for that keeps others from taking themselves for the last: what a connection reads or writes it locks
here too, also one that was inherited.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sqlite3
import threading
from contextlib import suppress

from qml_mp.errors import StorageError
from qml_mp.host import identity_of_file
from qml_mp.storage.connection import fork_guard
from qml_mp.storage.sqlite.users import READER_BYTE, covering

_DELETED = " (deleted)"
_INDEX = "-shm"
_FREE_BYTES = 1 << 29  # of the file, whose locks begin at 1 << 30; one for each thread


def is_open_here(path: str) -> bool:
    """Whether this process has a connection to the file that has read from it, and is not ours, or is in use;
    False where it is not told."""
    fork_guard().close_all()
    files, indexes = _open_here(path)
    return bool(files and indexes)


def check_has_locks(cursor: sqlite3.Cursor, path: str) -> None:
    """Raise `StorageError` where this process has no locks, though the cursor has just read."""
    if cursor.execute("PRAGMA journal_mode").fetchone()[0] not in ("wal", b"wal"):
        return  # it has none between two transactions
    files, _ = _open_here(path)
    try:
        if _has_lock(files, READER_BYTE) or not any(map(_shows_locks, files)):
            return
    except OSError:
        return  # not told
    raise StorageError(
        f"The SQLite file {path} cannot be used: this process was forked while a connection to it was open, "
        "and SQLite would take no locks here. Close such connections (of sqlite3; SQLAlchemy: "
        "engine.dispose(); a QmlApp: app.close()) before the fork, or start this process as a program of its "
        "own (spawn). Where it was not forked, something in it has opened and closed the file without SQLite "
        "(to copy it, say), which takes away all locks: restart it."
    )


def leave_open(connection: sqlite3.Connection) -> None:
    """Have the connection not even closed when the process exits."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # one reference too many, for good


def _open_here(path: str) -> tuple[list[int], list[int]]:
    """The descriptors of this process that are the file, and those that are an index of its log, also one
    that was deleted."""
    files: list[int] = []
    indexes: list[int] = []
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return files, indexes
    if (file := identity_of_file(path)) is None:
        return files, indexes
    for descriptor in descriptors:
        with suppress(OSError):  # the listing's own, and what another thread has closed
            status = os.fstat(descriptor)
            name = os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(_DELETED)
            if (status.st_dev, status.st_ino) == file:
                files.append(descriptor)
            elif name.endswith(_INDEX) and identity_of_file(name.removesuffix(_INDEX)) == file:
                indexes.append(descriptor)
    return files, indexes


def _has_lock(descriptors: list[int], byte: int) -> bool:
    """Whether this process has the byte locked by one of the descriptors, as far as it is shown. Raises
    `OSError` where it cannot be looked at."""
    for descriptor in descriptors:
        with (
            suppress(FileNotFoundError),  # another thread has closed it
            open(f"/proc/self/fdinfo/{descriptor}", encoding="utf-8") as shown,
        ):
            if any(covering((line for line in shown if line.startswith("lock:")), byte)):
                return True
    return False


def _shows_locks(descriptor: int) -> bool:
    """Whether a lock that this process takes by the descriptor is shown: one on a byte that nobody locks."""
    byte = _FREE_BYTES + threading.get_native_id()
    fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, byte)
    try:
        return _has_lock([descriptor], byte)
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, byte)
