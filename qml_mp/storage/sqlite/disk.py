"""Every process: commits brought to the disk, once their lock is let go.

SQLite's own way (`synchronous = FULL`) is to hold the write lock until the disk has answered: processes write
one behind the other, and whoever has just written is the first to have the lock again. With `NORMAL` a commit
is in the log, and seen by others, when it returns. Here its process then waits for the disk by itself,
beside the others: one answer of the disk serves all that is in the log by then. Nobody is told that something
is stored before it is on the disk; and as the log is read in order up to its first gap, whatever is there
has all before it there too.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping

from qml_mp.errors import StorageError, StorageUnreachable
from qml_mp.host import FileIdentity, identity_of_file
from qml_mp.storage.sqlite.errors import moved
from qml_mp.storage.sqlite.inherited import leave_open
from qml_mp.storage.sqlite.opening import close_without_index, open_descriptors
from qml_mp.storage.sqlite.users import index_of

_sync = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class LogOnDisk:
    """The write-ahead log of a process's connection, as far as it is on the disk."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1
        self._log_path = ""
        """Of the file that was opened: where its name leads to elsewhere later, that is another file."""
        self._log: FileIdentity | None = None
        self._index_path = ""
        self._index: FileIdentity | None = None
        """What SQLite shares with the other processes of what is in the log; without it they go apart."""
        self._shown_as: str | None = None
        """What the kernel calls it; None where it does not say."""
        self._is_doubtful = False
        """The disk has failed once: the kernel then takes for written what may not be."""
        self._files: dict[int, FileIdentity] = {}
        """What each descriptor was when it was opened, those of the connection included."""
        self._logs: frozenset[int] = frozenset()
        """Those of them that were the log, but ours. The connection's is one; which one is not told, as a
        thread may have opened a connection of the user's meanwhile, and may close it."""
        self._is_lost = False
        """Whether this process has a connection that must not even be closed."""

    @property
    def descriptors(self) -> frozenset[int]:
        """Those of the connection and its log, also of one that is left open for good."""
        return frozenset(self._files)

    def check_not_lost(self) -> None:
        """Raise `StorageError` where no other connection may be opened: SQLite notes once for all those of a
        process which locks they have and by which descriptors."""
        if self._is_lost:
            raise StorageError(
                f"The SQLite file {self._path} cannot be used: something in this process has closed the "
                "descriptors of the connection to it, or opened others in their place. Restart the process."
            )

    def open(self, log_path: str, *, of: FileIdentity | None, before: Mapping[int, FileIdentity]) -> None:
        """The log has to be there; raises `StorageUnreachable`. SQLite has no locks on it, which closing a
        descriptor would take away. `of` and `before`: what the file was, and what was open, before the
        connection was."""
        try:
            self._descriptor = os.open(log_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:  # the connection has made it, or found it
            raise moved(self._path) from error
        except OSError as error:
            raise StorageUnreachable(
                f"The log {log_path} of the SQLite file cannot be opened: {error.strerror}."
            ) from error
        self._log_path, self._log = log_path, identity_of_file(self._descriptor)
        self._index_path = index_of(self._path)
        self._index = identity_of_file(self._index_path)
        self._shown_as = _shown_name(self._descriptor)
        # Not what other threads open; of the same files they may have opened some too. What was the log
        # before is another connection's: that it stays says nothing of ours.
        theirs = {identity_of_file(self._path), self._log, self._index}
        opened = {fd: file for fd, file in open_descriptors().items() if file in theirs}
        self._files = {fd: file for fd, file in opened.items() if before.get(fd) != file}
        logs = (fd for fd, file in self._files.items() if file == self._log)
        self._logs = frozenset(logs) - {self._descriptor}
        # Else all of it would go, unseen, to files that have no name.
        known = {self._path: of, log_path: self._log, self._index_path: self._index}
        if any(file is None or identity_of_file(name) != file for name, file in known.items()):
            raise moved(self._path)

    def is_in_place(self) -> bool:
        """Whether the log that is open, and its index, were neither deleted nor replaced."""
        return self._is_log_in_place() and self._is_index_in_place()

    def close(self, connection: sqlite3.Connection | None) -> None:
        """Close the connection, and lose nothing of what it has written to the log; harmless when all is
        closed already.

        One of which a descriptor is closed, or another file by now, is left open for good. SQLite would lock
        that file, take itself for the last user, bring the log into it, and delete the log that others use.
        """
        if connection is not None and self._has_lost_descriptors():
            leave_open(connection)
            self._is_lost, self._descriptor = True, -1
            return
        self._files, self._logs = {}, frozenset()
        try:  # At once, since nobody else has it: in a `with` a signal could come between.
            if connection is not None:
                self._close_connection(connection)
        except sqlite3.Error:
            pass
        finally:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)

    def _has_lost_descriptors(self) -> bool:
        """Whether something has closed those of the connection. As long as this is open, SQLite closes none
        of the file or its index, whoever's it is, and whoever closes all closes all that are the log."""
        gone = {fd for fd, file in self._files.items() if identity_of_file(fd) != file}
        has_log = any(identity_of_file(fd) == self._log for fd in self._logs)
        return bool(gone - self._logs) or (bool(self._logs) and not has_log)

    def _close_connection(self, connection: sqlite3.Connection) -> None:
        if self._descriptor >= 0 and self._is_log_in_place() and not self._is_index_in_place():
            close_without_index(connection, self._path)
        else:
            connection.close()

    def _is_index_in_place(self) -> bool:
        return identity_of_file(self._index_path) == self._index

    def _is_log_in_place(self) -> bool:
        """The kernel is asked for its name, not for what its inode says: of a file whose times somebody has
        read Linux (from 6.13 on) notes the next write to the nanosecond, and a sixth of a commit goes into
        that. The index is written to in memory."""
        name = None if self._shown_as is None else _shown_name(self._descriptor)
        return identity_of_file(self._log_path) == self._log if name is None else name == self._shown_as

    def wait(self, connection: sqlite3.Connection, *, changed: bool = True) -> None:
        """Until all that was committed is on the disk; nothing to do where nothing was `changed`.

        Raises `StorageUnreachable`: others then see the commit, as one whose reply was lost, and it may go
        with the power.
        """
        if self._is_doubtful:
            self._move(connection)
        elif not changed:
            return
        try:
            _sync(self._descriptor)
        except OSError as error:
            self._is_doubtful = True
            raise self._failed(error.strerror or "") from error

    def forget(self) -> None:
        """After a fork: the number may be somebody else's by now."""
        self._descriptor, self._files, self._logs = -1, {}, frozenset()

    def _move(self, connection: sqlite3.Connection) -> None:
        """All of the log into the file, which is written and synced anew."""
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
        if busy:
            raise self._failed("what it has taken since is not known")
        self._is_doubtful = False

    def _failed(self, why: str) -> StorageUnreachable:
        return StorageUnreachable(
            f"The SQLite file {self._path} could not be written: the disk reported an error ({why}). What "
            "was written last may be lost if the machine goes down; look at the system's log."
        )


def _shown_name(descriptor: int) -> str | None:
    """The path of an open file, with a mark behind it once it is deleted; None where there is no /proc."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None
