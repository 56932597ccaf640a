"""Every process: connections to an SQLite file that were open when this process was forked.

SQLite notes within a process which locks that has on a file, once for all its connections. After a fork the
child has the notes, and POSIX has left the locks to the parent: what the child opens takes none, and the next
process that closes the file deletes the log and its index under it. So the child must not use the file, as
long as it has what it has inherited.

Looked at is which locks there are, and not what was forked how: the kernel shows those of a process with the
file that has them. Where it does not (not Linux, some file systems of FUSE), this is never found.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sqlite3
from collections.abc import Iterator

from qml_mp.errors import StorageError
from qml_mp.storage.sqlite.opening import identity_of

_DELETED = " (deleted)"
_INDEX = "-shm"
_FREE_BYTE = 1 << 30  # of an index, whose locks are on bytes 120 to 128


def is_open_here(path: str) -> bool:
    """Whether this process has a connection to the file that has read from it; False where it is not told."""
    return any(_open_indexes(path))


def check_has_locks(path: str) -> None:
    """Raise `StorageError` where this process has no locks, though a connection of it has just read."""
    indexes = list(_open_indexes(path))
    if not any(map(_has_lock, indexes)) and any(map(_shows_locks, indexes)):
        raise StorageError(
            f"The SQLite file {path} cannot be used: this process was forked while a connection to it was "
            "open, and SQLite would take no locks here. Close such connections (of sqlite3, SQLAlchemy and "
            "the like) before the fork, or start this process as a program of its own (spawn)."
        )


def leave_open(connection: sqlite3.Connection) -> None:
    """Have the connection not even closed when the process exits."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # one reference too many, for good


def _open_indexes(path: str) -> Iterator[int]:
    """The descriptors of this process that are an index of the file's log, also one that was deleted."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return
    if (file := identity_of(path)) is None:
        return
    for descriptor in descriptors:
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(_DELETED)
        except OSError:
            continue  # the listing's own
        if name.endswith(_INDEX) and identity_of(name.removesuffix(_INDEX)) == file:
            yield int(descriptor)


def _has_lock(descriptor: int) -> bool:
    """Whether this process has a lock by the descriptor, as far as it is shown."""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="utf-8") as shown:
            return any(line.startswith("lock:") for line in shown)
    except OSError:
        return False


def _shows_locks(descriptor: int) -> bool:
    """Whether a lock that this process takes by the descriptor is shown: one on a byte that nobody locks."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _FREE_BYTE)
        try:
            return _has_lock(descriptor)
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _FREE_BYTE)
    except OSError:
        return False
