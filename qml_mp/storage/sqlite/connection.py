"""Every process: its one connection to the SQLite file, opened when first used."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TypeVar
from urllib.parse import quote

from qml_mp.clock import Clock
from qml_mp.errors import InvalidJob
from qml_mp.host import FileIdentity, identity_of_file
from qml_mp.storage.connection import ProcessConnection
from qml_mp.storage.migrate import pending
from qml_mp.storage.sqlite.disk import LogOnDisk
from qml_mp.storage.sqlite.errors import is_busy, moved, spoils_handle, translated
from qml_mp.storage.sqlite.inherited import check_has_locks, is_open_here, leave_open
from qml_mp.storage.sqlite.opening import (
    apply_pending,
    check_log_has_its_file,
    check_writable,
    configure,
    connect,
    create_file,
    is_there,
    open_descriptors,
    undo,
    version_of,
)
from qml_mp.storage.sqlite.schema import MIGRATIONS
from qml_mp.storage.sqlite.users import log_of, size_of
from qml_mp.storage.waiting import StorageWait, WriteTurns, has_given_up, pause_before_next_try

_T = TypeVar("_T")


class SqliteConnection(ProcessConnection):
    """The file and this process's connection to it.

    `read()` and `write()` give the connection; neither may be entered inside the other.
    """

    migrations = MIGRATIONS

    def __init__(self, path: str, *, clock: Clock, busy_timeout: timedelta) -> None:
        # A job may change the current directory. Two slashes at the start would stay.
        self.path = f"/{os.path.abspath(path).lstrip('/')}"
        self.clock = clock
        self.opened = 0
        """How often a connection was opened: numbers that SQLite keeps per connection compare within one."""
        self.durable_commits = 0
        """How many transactions were committed that are of use to others; heartbeats are not."""
        self._busy_timeout_s = busy_timeout.total_seconds()
        self._patience = f"PRAGMA busy_timeout = {int(self._busy_timeout_s * 1000)}"
        self._waiting: StorageWait | None = None
        self._turns: WriteTurns | None = None
        self._has_turn = False
        """Whether the operation that runs may have one to give."""
        self._connection: sqlite3.Connection | None = None
        self._cursor: sqlite3.Cursor | None = None
        """Of the operation that runs, or of one that has ended."""
        self._is_patient = True
        """As the connection is set; see `_have_patience`."""
        self._is_forking = self._is_fork_waiting = False
        """The lock is held across a fork, or was waited for too long. Written by the thread that forks."""
        self._file: FileIdentity | None = None
        """The file once opened. It stays: a file that was deleted under us is never made anew."""
        self._disk = LogOnDisk(self.path)
        """Where its commits have to be; open as long as the connection."""
        super().__init__()

    @property
    def url(self) -> str:
        return f"sqlite:///{quote(self.path)}"

    @property
    def display_url(self) -> str:
        return f"sqlite:///{self.path}"

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection for reading, the schema checked; each statement sees what is committed."""
        with self._turn(), self._translated():
            connection = self._usable()
            self._have_patience(connection, patient=True)
            yield connection

    @contextmanager
    def write(self, *, durable: bool = True, durable_reads: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction with the write lock; committed at the end, rolled back on an error; then on the disk.

        One that is not `durable` may be lost when the machine goes down, and waits for no disk. One that has
        changed nothing waits only with `durable_reads`: others may be waiting still for what it has read.
        Raises `StorageUnavailable` when the lock cannot be had within the busy timeout, and
        `StorageUnreachable` when the disk fails: then nothing is known of what was committed.
        """
        with self._turn(), self._translated():
            connection = self._usable()
            self._have_patience(connection, patient=False)
            changes = connection.total_changes
            if self._turns is not None:
                self._has_turn = True
                self._turns.take()
            self._until_not_busy(lambda: connection.execute("BEGIN IMMEDIATE"))
            yield connection
            connection.execute("COMMIT")
            self._give_turn()
            self.durable_commits += durable
            if durable:
                self._disk.wait(connection, changed=durable_reads or connection.total_changes != changes)

    def write_once(self, statement: str, values: Sequence[object]) -> int:
        """`write` with one statement, which needs no BEGIN and COMMIT; how many rows it has written."""
        with self._turn(), self._translated():
            connection = self._usable()
            self._have_patience(connection, patient=False)
            cursor = self._until_not_busy(lambda: connection.execute(statement, values))
            self.durable_commits += 1
            self._disk.wait(connection)
            return cursor.rowcount

    def cursor(self, connection: sqlite3.Connection) -> sqlite3.Cursor:
        """The one cursor of the operation that runs; it gives plain tuples. When the operation fails it is
        closed: in the midst of its rows it would keep the connection at what it has seen."""
        self._cursor = cursor = connection.cursor()
        cursor.row_factory = None
        return cursor

    def where(self) -> str:
        return f"the SQLite file {self.path}"

    def _find_place(self) -> str:
        """Of the file that is open: one that was copied, or put back under its name, is another."""
        with self.read():
            return str(self._file)

    def schema_version(self) -> int:
        """Writes nothing and creates no file. A file that was there and is gone has no version 0: nobody is
        to make it anew."""
        self._check_not_moved()
        check_log_has_its_file(self.path)
        return self._apart(self._version) if is_there(self.path) else 0

    def log_bytes(self) -> int:
        return size_of(log_of(self.path))

    def check_rights(self) -> None:
        check_writable(self.path)

    def migrate(self) -> list[int]:
        with self._translated():
            create_file(self.path)
        return self._apart(self._migrate)

    def descriptors(self) -> frozenset[int]:
        return self._disk.descriptors

    def wait_with(self, waiting: StorageWait | None) -> None:
        """Has the pauses between two tries for a lock made by somebody else."""
        self._waiting = waiting

    def take_turns(self, turns: WriteTurns) -> None:
        """Not for what is written once, by producers."""
        self._turns = turns

    def close_for_fork(self) -> None:
        """Close the connection before a fork, once another thread's operation has ended: by itself, or
        soon because it waits for a lock. Else the child finds it open, and refuses to use the file."""
        self._is_forking = self._lock.acquire(timeout=self._busy_timeout_s)
        if not self._is_forking:
            self._is_fork_waiting = True
            self._is_forking = self._lock.acquire(timeout=self._busy_timeout_s)
            self._is_fork_waiting = False
        if self._is_forking:
            self.close()

    def is_open_elsewhere(self) -> bool:
        return is_open_here(self.path)

    def end_fork(self) -> None:
        """Let the other threads go on."""
        self._is_fork_waiting = False  # once more: a signal's exception may have ended the wait, unseen
        if self._is_forking:
            self._is_forking = False
            self._lock.release()

    def _undo(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
        if self._connection is not None:
            undo(self._connection)
        self._give_turn()

    def _give_turn(self) -> None:
        if self._turns is not None and self._has_turn:
            self._turns.give()
            self._has_turn = False  # only now: one too many is harmless

    def _drop(self) -> None:
        connection, self._connection, self._cursor = self._connection, None, None
        self._disk.close(connection)

    def _abandon(self) -> None:
        self._is_forking = self._is_fork_waiting = self._has_turn = False
        self._cursor = self._waiting = None  # the latter looks after what is the parent's
        self._disk.forget()
        if self._connection is not None:
            leave_open(self._connection)
            self._connection = None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if spoils_handle(error):
                self._drop()
            raise translated(error, self.path) from error
        except UnicodeEncodeError as error:
            raise InvalidJob(
                f"A text has a lone surrogate, which cannot be stored or found ({error})."
            ) from None

    def _usable(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._open()
            self._is_patient = True
            self.opened += 1
        elif identity_of_file(self.path) != self._file or not self._disk.is_in_place():
            # What is committed to a file that was deleted is lost, without any error of SQLite. Of a log that
            # was, the last of all who have it open brings what is in it into the file when it closes.
            self._drop()
            self._disk.check_not_lost()
            raise moved(self.path)
        elif self._connection.in_transaction:
            undo(self._connection)  # an exception struck between BEGIN and the code that guards it
        return self._connection

    def _have_patience(self, connection: sqlite3.Connection, *, patient: bool) -> None:
        """Whether SQLite itself waits for a lock: not for that of a writer, see above. Set only when it
        changes, as most producers do nothing but write."""
        if self._is_patient is not patient:
            self._is_patient = patient  # first: a signal may come after the call
            connection.execute(self._patience if patient else "PRAGMA busy_timeout = 0")

    def _until_not_busy(self, action: Callable[[], _T]) -> _T:
        deadline = self.clock.monotonic() + self._busy_timeout_s - self._has_waited_s
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or self._is_fork_waiting:
                    raise
                if self.clock.monotonic() >= deadline or has_given_up(self._waiting):
                    self._gave_up_at = time.monotonic()
                    raise
            pause_before_next_try(self._waiting)

    def _apart(self, use: Callable[[sqlite3.Connection], _T]) -> _T:
        """Use a connection for the schema alone, which is not looked at first."""
        self.leave_parents_handle()
        with self._lock, self._translated():
            connection = self._connect()
            try:
                return use(connection)
            finally:
                connection.close()

    def _connect(self) -> sqlite3.Connection:
        self._disk.check_not_lost()
        return connect(self.path, busy_timeout_s=self._busy_timeout_s)

    def _open(self) -> sqlite3.Connection:
        self._check_not_moved()
        if not self._is_schema_expected:
            create_file(self.path)
        before, file = open_descriptors(), identity_of_file(self.path)
        connection = self._connect()
        try:
            found = self._version(connection)
            if found:
                check_has_locks(connection.cursor(), self.path)
                self.check_found(found)
                self._until_not_busy(lambda: configure(connection, self.path))
            else:
                self._migrate(connection)
            version_of(connection)  # a first read, which makes the log
            self._disk.open(log_of(self.path), of=file, before=before)
        except BaseException:
            self._disk.close(connection)
            raise
        self._file, self._is_schema_expected = file, True
        return connection

    def _check_not_moved(self) -> None:
        is_gone = self._is_schema_expected and not is_there(self.path)
        if is_gone or self._file not in (None, identity_of_file(self.path)):
            raise moved(self.path)

    def _version(self, connection: sqlite3.Connection) -> int:
        found = version_of(connection)
        if not found and self._is_schema_expected:
            raise moved(self.path)
        return found

    def _migrate(self, connection: sqlite3.Connection) -> list[int]:
        pending(MIGRATIONS, found=version_of(connection), where=self.where())  # a newer one: no write
        check_has_locks(connection.cursor(), self.path)
        self._until_not_busy(lambda: configure(connection, self.path))
        connection.execute("PRAGMA busy_timeout = 0")
        begin = partial(self._until_not_busy, lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            return apply_pending(connection, MIGRATIONS, begin=begin, where=self.where(), clock=self.clock)
        finally:
            connection.execute(self._patience)
