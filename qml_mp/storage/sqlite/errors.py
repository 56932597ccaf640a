"""Every process: SQLite's errors turned into ours, with what to do next."""

from __future__ import annotations

import os
import sqlite3

from qml_mp.errors import StorageError, StorageUnavailable, StorageUnreachable
from qml_mp.storage.sqlite.users import is_writing, stopped_writer

_PRIMARY_CODE = 0xFF  # the upper bits say more than the texts below need

_BUSY_BY_ITSELF = (
    "is locked by a transaction that this program itself has open, on another connection. End that first; a "
    "job that belongs to it is enqueued by using(conn=connection)."
)
_OUTDATED = (
    "has changed since this transaction first read from it, so that it can write no more. Roll it back, and "
    "begin it with BEGIN IMMEDIATE."
)
_BUSY_BY_STOPPED = (
    "is locked by another program, pid {pid}, which somebody has stopped in the middle of a write. Let it go "
    "on (kill -CONT {pid}), or end it."
)
_UNAVAILABLE = {
    sqlite3.SQLITE_BUSY: "is locked by another program. Try again, or end the program that holds it open.",
    sqlite3.SQLITE_LOCKED: "is locked within this process. Try again.",
    sqlite3.SQLITE_FULL: "cannot grow: its disk is full. Nothing was written; free some space and try again.",
    sqlite3.SQLITE_READONLY: (
        "cannot be written. Nothing was written; give this user write permission on the file and on its "
        "folder, and see that the file system is mounted writable."
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "cannot be opened. See that its folder exists and that this user may read and write the file, its "
        "folder and the -wal and -shm files beside it."
    ),
    sqlite3.SQLITE_PERM: "may not be used by this user. Give it permission on the file and its folder.",
    sqlite3.SQLITE_AUTH: "may not be used by this user. Give it permission on the file and its folder.",
    sqlite3.SQLITE_IOERR: (
        "could not be read or written: the disk reported an error. Nothing was written; look at the "
        "system's log, and see that the file was not removed or truncated while in use."
    ),
    sqlite3.SQLITE_NOMEM: "could not be used: this process is out of memory. Nothing was written.",
    sqlite3.SQLITE_PROTOCOL: "is too busy to be read. Try again.",
    sqlite3.SQLITE_INTERRUPT: "was in use when the operation was interrupted. Nothing was written.",
}
# Of these: what every other operation would meet too. The rest concerns the one that met it: readers go on
# while the file is locked or the disk is full.
_UNREACHABLE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_IOERR)
_BROKEN = {
    sqlite3.SQLITE_CORRUPT: (
        "is damaged. Stop every program that uses it, keep a copy, and recover what can be read with "
        "`sqlite3 FILE .recover`, or put a backup in its place, once the files with -wal and -shm behind its "
        "name are gone."
    ),
    sqlite3.SQLITE_NOTADB: "is not an SQLite database. Nothing was written; name another file.",
}


def is_busy(error: sqlite3.Error) -> bool:
    """Whether another connection holds a lock, so that trying again soon can help."""
    return _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def spoils_handle(error: sqlite3.Error) -> bool:
    """Whether the connection should be opened anew after this, because the file may have changed under it."""
    code = _code(error)
    return (code in _UNAVAILABLE and not is_busy(error)) or code in _BROKEN


def refuses_values(error: sqlite3.Error) -> bool:
    """Whether it is about the values or a constraint of the rows: the same ones will be refused again, and
    others may be taken. A trigger of the user's that refuses is not: it may be removed."""
    whole_code = getattr(error, "sqlite_errorcode", None)
    return refuses_rows(error) and whole_code != sqlite3.SQLITE_CONSTRAINT_TRIGGER


def refuses_rows(error: sqlite3.Error) -> bool:
    """Whether a constraint, or a trigger of the user's, refuses the rows: others may be taken."""
    return _code(error) in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG)


def translated(error: sqlite3.Error, path: str) -> StorageError:
    """The error to raise instead, with the file's name and what to do."""
    code = _code(error)
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return StorageUnavailable(f"The SQLite file {path} {_OUTDATED} ({error})")
    if code == sqlite3.SQLITE_IOERR and not os.path.exists(path):
        return moved(path)
    if code in _UNAVAILABLE:
        kind = StorageUnreachable if code in _UNREACHABLE else StorageUnavailable
        why = _why_busy(path) if code == sqlite3.SQLITE_BUSY else _UNAVAILABLE[code]
        if code == sqlite3.SQLITE_CANTOPEN and os.path.isdir(path):
            why = "is a folder. Name a file in it."
        return kind(f"The SQLite file {path} {why} ({error})")
    if code in _BROKEN:
        return StorageError(f"The SQLite file {path} {_BROKEN[code]} ({error})")
    return StorageError(f"SQLite refused an operation on the file {path}; nothing was written. ({error})")


def moved(path: str) -> StorageUnreachable:
    """What to raise when the open file is not the one of that name any more."""
    return StorageUnreachable(
        f"The SQLite file {path}, or a -wal or -shm file beside it, was deleted or replaced while in use. "
        "Nothing was written; stop every program that uses it, put the file back if it is still "
        "wanted, and start again."
    )


def _why_busy(path: str) -> str:
    if is_writing(path):
        return _BUSY_BY_ITSELF
    pid = stopped_writer(path)
    # Any other has another number at each look, which would make another text of each.
    return _UNAVAILABLE[sqlite3.SQLITE_BUSY] if pid is None else _BUSY_BY_STOPPED.format(pid=pid)


def _code(error: sqlite3.Error) -> int | None:
    # Missing on errors that the module raises by itself, such as the use of a closed connection.
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & _PRIMARY_CODE
