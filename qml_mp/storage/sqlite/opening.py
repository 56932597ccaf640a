"""Every process: an SQLite file made, connected to, set up and told from others."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from qml_mp.errors import ConfigurationError, StorageError, StorageUnreachable
from qml_mp.host import identity_of_file, is_stopped
from qml_mp.standard_streams import is_open, occupy_standard_streams
from qml_mp.storage.migrate import Migration, no_version
from qml_mp.storage.sqlite.mounts import check_has_its_folder, device_of
from qml_mp.storage.sqlite.schema import ADD_VERSION, HAS_VERSIONS, VERSION

_NEEDED_SQLITE = (3, 35, 0)  # RETURNING
_LARGEST_IDLE_WAL_BYTES = 64 * 1024 * 1024
_LOCKS = Path("/proc/locks")
_WRITER_BYTE = 120  # of the -shm file: what a writer locks (WAL_WRITE_LOCK in SQLite's wal.c)
_USER_BYTE = 128  # what every connection has locked as long as it is open (UNIX_SHM_DMS in os_unix.c)
READER_BYTE = 0x40000002  # of the file: what every connection has locked as well (SHARED_FIRST in os.h)
_LOOKS, _LOOK_EVERY_S = 20, 0.01


def create_file(path: str) -> None:
    """Make an empty file for its owner alone, unless there is one; a file that is there keeps its mode."""
    try:
        # With its mode before SQLite opens it; the -wal and -shm files take after it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise _not_created(path, error.errno) from error


def roll_back(connection: sqlite3.Connection) -> None:
    """End the transaction that is open, if one is."""
    if connection.in_transaction:
        with suppress(sqlite3.Error):  # the error that led here is the one to tell
            connection.rollback()


def roll_back_to(connection: sqlite3.Connection, savepoint: str) -> None:
    """End the savepoint, with what came after it undone. A disk that is full or fails has SQLite roll back
    the whole transaction, and nothing is left to do then."""
    if connection.in_transaction:
        connection.execute(f"ROLLBACK TO {savepoint}")
        connection.execute(f"RELEASE {savepoint}")


def undo(connection: sqlite3.Connection) -> None:
    """Have the connection as the next operation needs it, wherever an exception has struck."""
    with suppress(sqlite3.Error):
        restore_checks(connection)  # first: once nothing is open, nobody sees that this is still to be done
    roll_back(connection)


def restore_checks(connection: sqlite3.Connection) -> None:
    """Have the CHECKs of the tables hold, which many new rows go without; harmless when they do."""
    connection.execute("PRAGMA ignore_check_constraints = OFF")


def is_there(path: str) -> bool:
    """Whether there is a file. Raises `StorageUnreachable` where that cannot be seen."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StorageUnreachable(
            f"The SQLite file {path} cannot be looked for: {error.strerror}. See that this user may enter "
            "its folder, or name another file."
        ) from error
    return True


def check_writable(path: str) -> None:
    """Raise `StorageUnreachable` where this user could not make the file, or write to the one that is there,
    and `StorageError` where it is mounted without its folder.

    The system is asked and nothing is opened: to close a descriptor of the file would give up the locks
    that this process has on it.
    """
    check_has_its_folder(path)
    folder = os.path.dirname(os.path.realpath(path))
    if not is_there(path):
        if not os.path.isdir(folder):
            raise _not_created(path, errno.ENOTDIR if os.path.exists(folder) else errno.ENOENT)
        if not _may(folder, os.W_OK | os.X_OK):
            raise _not_created(path, errno.EACCES)
        return
    beside = (log_of(path), index_of(path))
    missing = [file for file in beside if not os.path.exists(file)]
    needed = [path, *(file for file in beside if file not in missing), *([folder] if missing else [])]
    for each in needed:
        if not _may(each, os.R_OK | os.W_OK):
            raise StorageUnreachable(
                f"The SQLite file {path} cannot be written: this user may not write to {each}. Give it write "
                "permission on the file and on its folder, and see that the file system is mounted writable."
            )


def connect(path: str, *, busy_timeout_s: float) -> sqlite3.Connection:
    """A connection to a file that is there; it makes none."""
    if sqlite3.sqlite_version_info < _NEEDED_SQLITE:
        raise ConfigurationError(
            f"This Python has SQLite {sqlite3.sqlite_version}; qml-mp needs 3.35 or newer. "
            "Use a newer Python, or PostgreSQL."
        )
    check_has_its_folder(path)
    occupy_standard_streams()
    connection = sqlite3.connect(
        _uri_of(path, mode="rw"),
        uri=True,
        timeout=busy_timeout_s,
        isolation_level=None,  # transactions are opened by name, never by the driver
        check_same_thread=False,  # the lock of `Database` makes threads take turns
        cached_statements=256,
    )
    connection.row_factory = sqlite3.Row
    connection.text_factory = _any_text
    return connection


def configure(connection: sqlite3.Connection, path: str) -> None:
    """Set what a commit promises. May raise SQLITE_BUSY while another process does the same."""
    # WAL: readers never wait for the writer. NORMAL: nor does the next writer for the disk (see disk.py).
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StorageError(
            f"The SQLite file {path} cannot use a write-ahead log: its journal mode stays {mode!r}, "
            "as on network file systems. Put it on a local disk, or use PostgreSQL."
        )
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")  # what a claim has chosen would go through a file
    connection.execute(f"PRAGMA journal_size_limit = {_LARGEST_IDLE_WAL_BYTES}")


def version_of(connection: sqlite3.Connection) -> int:
    """The version of the schema, 0 when there is none. Reads only. Raises `SchemaMismatch` for a schema
    that does not say its version, and `StorageError` for a file in which none is to be made."""
    if not connection.execute(HAS_VERSIONS).fetchone()[0]:
        _check_encoding(connection)
        return 0
    version: int | None = connection.execute(VERSION).fetchone()[0]
    if not version:
        raise no_version(f"the SQLite file {_path_of(connection)}")
    return version


def apply(connection: sqlite3.Connection, migration: Migration, *, now_us: int) -> None:
    """Bring the schema to the version, in the transaction that is open."""
    for statement in migration.sql.split(";\n"):
        connection.execute(statement)
    connection.execute(ADD_VERSION, {"version": migration.version, "now": now_us})


def open_descriptors() -> frozenset[int]:
    """Those of this process now; SQLite does not tell its own."""
    try:
        listed = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return frozenset()  # not one is left for the listing
    return frozenset(fd for fd in listed if is_open(fd))  # the listing's own is not any more


def log_of(path: str) -> str:
    """The write-ahead log, which lies beside the file that a symbolic link leads to."""
    return f"{os.path.realpath(path)}-wal"


def index_of(path: str) -> str:
    """What all who have the file open share of its log: where in it the newest of each page is."""
    return f"{os.path.realpath(path)}-shm"


def is_writing(path: str) -> bool:
    """Whether a connection of this process has a transaction that writes; False where it is not told.

    SQLite itself does not say who has a lock: POSIX locks never keep a process from its own.
    """
    return ("WRITE", str(os.getpid())) in _locks(index_of(path), _WRITER_BYTE)


def stopped_writer(path: str) -> str | None:
    """The pid of a process that is stopped in the middle of a write: nobody else writes until it goes on."""
    writers = (pid for kind, pid in _locks(index_of(path), _WRITER_BYTE) if kind == "WRITE")
    return next((pid for pid in writers if is_stopped(int(pid))), None)


def has_lost_its_log(path: str) -> bool:
    """Whether the log or its index was deleted under a connection of some process; False where that is not
    told.

    The index of the log, which all share, stays that of the deleted one. Whoever opened the file now would
    make a new log, take its zeros for what the index says, and write them into the file in the end. And of
    two processes with an index each, neither knows what the other one has added to the log.
    """
    suspects = _without_it(path)
    for _ in range(_LOOKS):
        if not suspects:
            return False
        time.sleep(_LOOK_EVERY_S)  # who is about to open or to close the file is one of them for a moment
        suspects &= _without_it(path)
    files = map(_names_of_open_files, suspects)
    return any(not names or any("-shm" in name for name in names) for names in files)  # some index it has


def close_without_index(connection: sqlite3.Connection, path: str) -> None:
    """Close a connection whose index of the log is not the one beside the file any more.

    The last one to close brings into the file what its index knows of the log, and deletes the log with all
    that others have added to it. One that cannot write leaves it to the next who opens the file; and while it
    is open no other is the last.
    """
    try:
        with closing(sqlite3.connect(_uri_of(path, mode="ro"), uri=True)) as last:
            last.execute("SELECT 1 FROM sqlite_master").fetchone()
            connection.close()
    finally:
        connection.close()


def _check_encoding(connection: sqlite3.Connection) -> None:
    """The limits of the tables count the bytes of a text as they are stored."""
    encoding = connection.execute("PRAGMA encoding").fetchone()[0]
    if encoding != "UTF-8":
        raise StorageError(
            f"The SQLite file {_path_of(connection)} keeps text in {encoding}, in which payloads and results "
            "of the size that is promised have no room. Nothing was written; name another file, as one that "
            "qml-mp makes, or copy its tables into one that is in UTF-8."
        )


def _path_of(connection: sqlite3.Connection) -> str:
    path: str = connection.execute("PRAGMA database_list").fetchone()[2]
    return path


def _without_it(path: str) -> set[str]:
    """The processes that read the file and do not seem to have the log and the index that are beside it."""
    log = log_of(path)
    is_in_use, has_log = any(_locks(index_of(path), _USER_BYTE)), os.path.exists(log)
    if is_in_use and has_log:
        return set()
    # Twice: a long list comes in pages, and what is unlocked between two of them hides another lock.
    readers = {pid for _ in range(2) for kind, pid in _locks(path, READER_BYTE) if kind == "READ"}
    if not is_in_use and not has_log:  # they were deleted together, or none has them yet
        readers = {pid for pid in readers if f"{log} (deleted)" in _names_of_open_files(pid)}
    return readers


def _uri_of(path: str, *, mode: str) -> str:
    return f"file:{quote(path)}?mode={mode}"


def _may(path: str, mode: int) -> bool:
    """As `os.access`, which leaves out what capabilities permit; with these where it is told."""
    by_id = os.access(path, mode)
    return by_id or (os.access in os.supports_effective_ids and os.access(path, mode, effective_ids=True))


def _not_created(path: str, code: int | None) -> StorageUnreachable:
    if code == errno.ENOENT:
        return StorageUnreachable(
            f"The folder of the SQLite file {path} does not exist. Create it, or name another file."
        )
    return StorageUnreachable(
        f"The SQLite file {path} cannot be created: {os.strerror(code or 0)}. "
        "See that this user may write to its folder and that its disk has room."
    )


def _names_of_open_files(pid: str) -> set[str]:
    """Those of a process, with a mark behind what is deleted; none where this user may not look."""
    names = set()
    with suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                names.add(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return names


def _locks(path: str, byte: int) -> Iterator[tuple[str, str]]:
    """Kind and process of the locks on one byte of a file, of those processes that can be seen from here."""
    file = identity_of_file(path)
    if file is None:
        return
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return
    on_any = [each for each in covering(lines, byte) if each[2].rpartition(":")[2] == str(file[1])]
    device = device_of(path) if on_any else None  # files of several file systems have the same number
    for kind, pid, locked in on_any:
        major, minor, _ = locked.split(":")
        if device is None or device == (int(major, 16), int(minor, 16)):
            yield kind, pid


def covering(lines: Iterable[str], byte: int) -> Iterator[tuple[str, str, str]]:
    """Kind, process and file of the locks that cover the byte, of those that the kernel shows."""
    # "1: POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120"; two that touch each other are shown as one
    for *_, kind, pid, locked, first, last in (line.split() for line in lines):
        if int(first) <= byte and (last == "EOF" or byte <= int(last)):
            yield kind, pid, locked


def _any_text(raw: bytes) -> str:
    """Text from a row that anybody may have written: no bytes make reading fail."""
    return raw.decode("utf-8", "surrogateescape")
