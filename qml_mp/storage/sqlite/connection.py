"""Every process: its one connection to the SQLite file, opened when first used."""

from __future__ import annotations

import ctypes
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import quote

from qml_mp.clock import Clock
from qml_mp.errors import ConfigurationError, InvalidJob, StorageError, StorageUnavailable
from qml_mp.storage.migrate import check_version, pending
from qml_mp.storage.sqlite import sql
from qml_mp.storage.sqlite.errors import is_busy, spoils_handle, translated
from qml_mp.storage.sqlite.instants import to_us
from qml_mp.storage.sqlite.schema import MIGRATIONS

_Result = TypeVar("_Result")

_NEEDED_SQLITE = (3, 35, 0)  # RETURNING
_LARGEST_IDLE_WAL_BYTES = 64 * 1024 * 1024
# Pauses between two tries for the write lock. The mean stays the same however long one waits: with
# growing pauses, as SQLite has them, the writer that has waited longest looks least often.
_SHORTEST_PAUSE_S = 0.0003
_LONGEST_PAUSE_S = 0.003


class Database:
    """The file and this process's connection to it; threads take turns.

    `read()` and `write()` give the connection; neither may be entered inside the other. A forked
    child never touches its parent's handle: the handle is closed before the fork when it is idle,
    and otherwise abandoned by the child, which opens its own.
    """

    def __init__(self, path: str, *, clock: Clock, busy_timeout: timedelta) -> None:
        self.path = os.path.abspath(path)  # a job may change the current directory
        self.clock = clock
        self._busy_timeout_s = busy_timeout.total_seconds()
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._in_use = False
        self._file_identity: tuple[int, int] | None = None
        self._hooks_pid: int | None = None
        self.opened = 0
        """How often a connection was opened: numbers that SQLite keeps per connection compare within one."""

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The connection for reading, the schema checked; each statement sees what is committed."""
        with self._turn() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the write lock; committed at the end, rolled back on any error.

        Raises `StorageUnavailable` when the lock cannot be had within the busy timeout.
        """
        with self._turn() as connection:
            try:
                self._begin(connection)
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                _roll_back(connection)
                raise

    def version(self) -> int:
        """The version of the schema, 0 when there is none. Writes nothing and creates no file."""
        if not os.path.exists(self.path):
            return 0
        with self._translated():
            connection = self._connect("rw")
            try:
                return self._version(connection)
            finally:
                connection.close()

    def migrate(self) -> list[int]:
        """Bring the schema up to this code; the versions applied."""
        with self._lock, self._translated():
            self.close()
            self._create_file()
            connection = self._connect("rw")
            try:
                return self._migrate(connection)
            finally:
                connection.close()

    def close(self) -> None:
        """Close this process's connection; harmless when there is none."""
        self._leave_parents_handle()
        with self._lock:
            if self._connection is not None and not self._in_use:
                connection, self._connection = self._connection, None
                with suppress(sqlite3.Error):
                    connection.close()

    def where(self) -> str:
        """The file as messages name it."""
        return f"the SQLite file {self.path}"

    # Taking turns

    @contextmanager
    def _turn(self) -> Iterator[sqlite3.Connection]:
        self._leave_parents_handle()
        with self._lock:
            if self._in_use:
                raise StorageError("A storage operation was started inside another one of the same thread.")
            with self._translated():
                connection = self._usable()
                self._in_use = True
                try:
                    yield connection
                finally:
                    self._in_use = False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if spoils_handle(error):
                self.close()
            raise translated(error, self.path) from error
        except UnicodeEncodeError as error:
            raise InvalidJob(
                f"A text has a lone surrogate, which cannot be stored or found ({error})."
            ) from None

    def _usable(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._open()
            self.opened += 1
        elif _identity(self.path) != self._file_identity:
            # Whatever is committed to a file that was deleted is lost, without any error of SQLite.
            self.close()
            raise self._moved()
        elif self._connection.in_transaction:
            self._connection.rollback()  # an exception struck between BEGIN and the code that guards it
        return self._connection

    def _moved(self) -> StorageUnavailable:
        return StorageUnavailable(
            f"The SQLite file {self.path} was deleted or replaced while in use. Nothing was written; "
            "stop every program that uses it, put the file back if it is still wanted, and start again."
        )

    def _begin(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            self._until_not_busy(lambda: connection.execute("BEGIN IMMEDIATE"))
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout_s * 1000)}")

    def _until_not_busy(self, action: Callable[[], _Result]) -> _Result:
        deadline = self.clock.monotonic() + self._busy_timeout_s
        while True:
            try:
                return action()
            except sqlite3.OperationalError as error:
                if not is_busy(error) or self.clock.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S))

    # Opening

    def _open(self) -> sqlite3.Connection:
        if self._file_identity is None:
            self._create_file()
        elif _identity(self.path) != self._file_identity:
            raise self._moved()
        self._close_before_forks()
        connection = self._connect("rw")
        try:
            found = self._version(connection)
            if found:
                check_version(MIGRATIONS, found=found, where=self.where())
            else:
                self._migrate(connection)
            self._configure(connection)
        except BaseException:
            connection.close()
            raise
        self._file_identity = _identity(self.path)
        return connection

    def _create_file(self) -> None:
        try:
            # With its mode before SQLite opens it; the -wal and -shm files take after it.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass
        except FileNotFoundError:
            raise StorageUnavailable(
                f"The folder of the SQLite file {self.path} does not exist. Create it, or name another file."
            ) from None
        except OSError as error:
            raise StorageUnavailable(
                f"The SQLite file {self.path} cannot be created: {error.strerror}. "
                "See that this user may write to its folder and that its disk has room."
            ) from error

    def _connect(self, mode: str) -> sqlite3.Connection:
        if sqlite3.sqlite_version_info < _NEEDED_SQLITE:
            raise ConfigurationError(
                f"This Python has SQLite {sqlite3.sqlite_version}; qml-mp needs 3.35 or newer. "
                "Use a newer Python, or PostgreSQL."
            )
        connection = sqlite3.connect(
            f"file:{quote(self.path)}?mode={mode}",
            uri=True,
            timeout=self._busy_timeout_s,
            isolation_level=None,  # transactions are opened by name, never by the driver
            check_same_thread=False,  # the lock above makes threads take turns
            cached_statements=256,
        )
        connection.row_factory = sqlite3.Row
        connection.text_factory = _any_text
        return connection

    def _configure(self, connection: sqlite3.Connection) -> None:
        # WAL: readers never wait for the writer. FULL: a commit is on the disk when it returns.
        mode = self._until_not_busy(lambda: connection.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        if mode != "wal":
            raise StorageError(
                f"The SQLite file {self.path} cannot use a write-ahead log (its journal mode stays {mode!r}), as "
                "on network file systems. Put it on a local disk, or use PostgreSQL."
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA journal_size_limit = {_LARGEST_IDLE_WAL_BYTES}")

    def _version(self, connection: sqlite3.Connection) -> int:
        if not connection.execute(sql.HAS_VERSIONS).fetchone()[0]:
            return 0
        return connection.execute(sql.VERSION).fetchone()[0] or 0

    def _migrate(self, connection: sqlite3.Connection) -> list[int]:
        pending(MIGRATIONS, found=self._version(connection), where=self.where())  # a newer one: no write
        self._configure(connection)
        self._begin(connection)
        try:
            # Read again under the lock: of several starters the first migrates and the rest find it done.
            missing = pending(MIGRATIONS, found=self._version(connection), where=self.where())
            for migration in missing:
                for statement in migration.sql.split(";\n"):
                    connection.execute(statement)
                applied = {"version": migration.version, "now": to_us(self.clock.now())}
                connection.execute(sql.ADD_VERSION, applied)
            connection.execute("COMMIT")
        except BaseException:
            _roll_back(connection)
            raise
        return [migration.version for migration in missing]

    # Forks

    def _close_before_forks(self) -> None:
        """Have the handle closed before each fork of this process.

        SQLite keeps its locks per process, and a child that opens the file beside an inherited
        handle believes that it holds its parent's. The callbacks hold the object weakly, because
        they cannot be taken back.
        """
        if self._hooks_pid is None:
            self._hooks_pid = self._pid
            os.register_at_fork(
                before=_weakly(self._close_for_fork), after_in_child=_weakly(self._leave_parents_handle)
            )

    def _close_for_fork(self) -> None:
        if self._lock.acquire(timeout=self._busy_timeout_s):
            try:
                self.close()
            finally:
                self._lock.release()

    def _leave_parents_handle(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self._lock = threading.RLock()  # the old one may be held by a thread that does not exist here
        self._in_use = False
        if self._connection is not None:
            # Never closed, not even at exit: closing would act on the file in the parent's name.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with suppress(sqlite3.Error):  # the error that led here is the one to tell
            connection.rollback()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _any_text(raw: bytes) -> str:
    """Text from a row that anybody may have written: no bytes make reading fail."""
    return raw.decode("utf-8", "surrogateescape")


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        bound: Any = reference()
        if bound is not None:
            bound()

    return call
