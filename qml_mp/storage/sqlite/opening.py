"""Every process: an SQLite file made, connected to, set up and told from others."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from urllib.parse import quote

from qml_mp.clock import Clock
from qml_mp.errors import ConfigurationError, StorageError, StorageUnreachable
from qml_mp.host import FileIdentity, identity_of_file
from qml_mp.standard_streams import occupy_standard_streams
from qml_mp.storage.migrate import Migration, no_version, pending
from qml_mp.storage.sqlite.errors import moved
from qml_mp.storage.sqlite.instants import to_us
from qml_mp.storage.sqlite.mounts import check_has_its_folder
from qml_mp.storage.sqlite.schema import ADD_VERSION, HAS_VERSIONS, VERSION
from qml_mp.storage.sqlite.users import has_lost_its_log, index_of, is_in_use, log_of, size_of

_NEEDED_SQLITE = (3, 35, 0)  # RETURNING
_LARGEST_IDLE_WAL_BYTES = 64 * 1024 * 1024


def create_file(path: str) -> None:
    """Make an empty file for its owner alone, unless there is one; a file that is there keeps its mode.
    Raises what `check_log_has_its_file` does."""
    check_log_has_its_file(path)
    try:
        # With its mode before SQLite opens it; the -wal and -shm files take after it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise _not_created(path, error.errno) from error


def check_log_has_its_file(path: str) -> None:
    """Raise `StorageUnreachable` where the file is gone, or empty, and its log is not, or is in use.

    SQLite takes what lies beside an empty file for left over: it deletes the log, and whoever puts the file
    back has it without all that was committed last. Those who have the file open would share the index of
    their log with the new one.
    """
    if size_of(path):
        return
    has_log, has_users = bool(size_of(log_of(path))), is_in_use(path)
    if not (has_log or has_users) or size_of(path):  # whoever makes it has made it before its log
        return
    if has_users:
        raise moved(path)
    raise StorageUnreachable(
        f"The SQLite file {path} is gone, or empty, and its log {log_of(path)}, with what was committed "
        "last, is still there. Nothing was written; put the file back, or delete what has its name with -wal "
        "and -shm behind it if a new one is wanted."
    )


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
    """A connection to a file that is there; it makes none. Raises `StorageUnreachable` where the file or its
    log was taken away from those who use it."""
    if sqlite3.sqlite_version_info < _NEEDED_SQLITE:
        raise ConfigurationError(
            f"This Python has SQLite {sqlite3.sqlite_version}; qml-mp needs 3.35 or newer. "
            "Use a newer Python, or PostgreSQL."
        )
    check_has_its_folder(path)
    check_log_has_its_file(path)
    if has_lost_its_log(path):
        raise moved(path)
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


def apply_pending(
    connection: sqlite3.Connection,
    migrations: Sequence[Migration],
    *,
    begin: Callable[[], object],
    where: str,
    clock: Clock,
) -> list[int]:
    """Bring the schema up, in a transaction that `begin` opens with the write lock; the versions applied."""
    connection.execute("PRAGMA synchronous = FULL")  # its log may not be open yet
    try:
        begin()
        # Read again under the lock: of several starters the first migrates and the rest find it done.
        missing = pending(migrations, found=version_of(connection), where=where)
        for migration in missing:
            for statement in migration.sql.split(";\n"):
                connection.execute(statement)
            values = {"version": migration.version, "now": to_us(clock.now())}
            connection.execute(ADD_VERSION, values)
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    finally:
        connection.execute("PRAGMA synchronous = NORMAL")
    return [migration.version for migration in missing]


def open_descriptors() -> dict[int, FileIdentity]:
    """Those of this process now, and the file of each; SQLite does not tell its own."""
    try:
        listed = [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return {}  # not one is left for the listing
    files = ((fd, identity_of_file(fd)) for fd in listed)
    return {fd: file for fd, file in files if file is not None}  # the listing's own is not any more


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


def _any_text(raw: bytes) -> str:
    """Text from a row that anybody may have written: no bytes make reading fail."""
    return raw.decode("utf-8", "surrogateescape")
