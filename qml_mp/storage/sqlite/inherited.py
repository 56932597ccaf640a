"""Every process: connections to an SQLite file that were open when this process was forked.

SQLite notes within a process which locks that has on a file, once for all its connections. After a fork the
child has the notes, and POSIX has left the locks to the parent: what the child opens takes none, and the next
process that closes the file deletes the log and its index under it. So the child must not open the file, as
long as it has what it has inherited.

Looked at is what is open, and not what was forked how: the kernel shows the locks of a process with the file
that has them. Where it does not (not Linux), this is never found.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from functools import cache

from qml_mp.errors import StorageError
from qml_mp.storage.sqlite.opening import identity_of

_DELETED = " (deleted)"
_INDEX = "-shm"
_LOOKS, _LOOK_EVERY_S = 20, 0.01


def is_open_here(path: str) -> bool:
    """Whether this process has a connection to the file that has read from it; False where it is not told."""
    return any(_open_indexes(path))


def check_not_inherited(path: str) -> None:
    """Raise `StorageError` where a connection that is opened now would have no locks."""
    for _ in range(_LOOKS):
        indexes = list(_open_indexes(path))
        if not indexes or any(_has_lock(descriptor) for descriptor in indexes):
            return
        time.sleep(_LOOK_EVERY_S)  # another thread may be about to open its own: its lock comes in a moment
    if _locks_are_shown():
        raise StorageError(
            f"The SQLite file {path} cannot be used: this process was forked while a connection to it was "
            "open, and SQLite would take no locks here. Close such connections (of sqlite3, SQLAlchemy and "
            "the like) before the fork, or start this process as a program of its own (spawn)."
        )


def leave_open(connection: sqlite3.Connection) -> None:
    """Have the connection not even closed when the process exits."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))  # one reference too many, for good


def _open_indexes(path: str) -> Iterator[str]:
    """The descriptors of this process that are an index of the file's log, also one that was deleted."""
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return
    file = None
    for descriptor in descriptors:
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}").removesuffix(_DELETED)
        except OSError:
            continue  # the listing's own
        if name.endswith(_INDEX):
            file = file or identity_of(path)
            if file is not None and identity_of(name.removesuffix(_INDEX)) == file:
                yield descriptor


def _has_lock(descriptor: int | str) -> bool:
    """Whether this process has a lock by the descriptor, as far as it is shown."""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="utf-8") as shown:
            return any(line.startswith("lock:") for line in shown)
    except OSError:
        return False


@cache
def _locks_are_shown() -> bool:
    """Whether the kernel tells of a lock that is there: not all that have a /proc do."""
    try:
        descriptor = os.memfd_create("qml-mp")
    except (AttributeError, OSError):
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        return _has_lock(descriptor)
    except OSError:
        return False
    finally:
        os.close(descriptor)
