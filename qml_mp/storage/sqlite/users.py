"""Every process: the log beside an SQLite file, and who has them open, as the kernel shows their locks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from qml_mp.host import identity_of_file, is_stopped
from qml_mp.storage.sqlite.mounts import device_of
from qml_mp.units import format_size

_T = TypeVar("_T")

_LOCKS = Path("/proc/locks")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")  # the most that the kernel shows of it at a time
_WRITER_BYTE = 120  # of the -shm file: what a writer locks (WAL_WRITE_LOCK in SQLite's wal.c)
_USER_BYTE = 128  # what every connection has locked as long as it is open (UNIX_SHM_DMS in os_unix.c)
READER_BYTE = 0x40000002  # of the file: what every connection has locked as well (SHARED_FIRST in os.h)
_LOG_READER_BYTES = range(123, 128)  # of it: who reads has one (WAL_READ_LOCK); 123: all is in the file
_LARGE_LOG_BYTES = 1024**3
_LOOKS, _LOOK_EVERY_S = 20, 0.01
_MOST_READINGS = 4  # in either way: of a list that is never the same twice


def log_of(path: str) -> str:
    """The write-ahead log, which lies beside the file that a symbolic link leads to."""
    return f"{os.path.realpath(path)}-wal"


def index_of(path: str) -> str:
    """What all who have the file open share of its log: where in it the newest of each page is."""
    return f"{os.path.realpath(path)}-shm"


def size_of(file: str) -> int:
    """0 where there is none."""
    try:
        return os.stat(file).st_size
    except OSError:
        return 0


def large_logs(path: str) -> Iterator[str]:
    """Whether the log is so large that somebody may be reading all the time, one text for people: it begins
    anew only once nobody reads what the file was before."""
    size = size_of(log_of(path))
    if size < _LARGE_LOG_BYTES:
        return
    readers = sorted({pid for pid, _ in _at_each_look(lambda: _reading(path))}, key=int)
    log = f"The log {log_of(path)} is {format_size(size)}"
    if readers:
        yield (
            f"{log}, and grows with each commit until its disk is full, as long as a transaction that reads "
            f"does not end; end that, or its program: pid {', '.join(readers)}."
        )
    else:
        yield (
            f"{log}: perhaps one commit was that large, or a transaction that reads does not end, of a "
            "program that is not seen from here. Where it grows with each commit, end that in time."
        )


def is_writing(path: str) -> bool:
    """Whether a connection of this process has a transaction that writes; False where it is not told.

    SQLite itself does not say who has a lock: POSIX locks never keep a process from its own.
    """
    return ("WRITE", str(os.getpid())) in _locks(index_of(path), _WRITER_BYTE)


def stopped_writer(path: str) -> str | None:
    """The pid of a process that is stopped in the middle of a write: nobody else writes until it goes on."""
    writers = (pid for kind, pid in _locks(index_of(path), _WRITER_BYTE) if kind == "WRITE")
    return next((pid for pid in writers if is_stopped(int(pid))), None)


def is_in_use(path: str) -> bool:
    """Whether somebody has the log that is beside the file open, also where the file itself is gone; False
    where it is not told."""
    return any(_locks(index_of(path), _USER_BYTE))


def has_lost_its_log(path: str) -> bool:
    """Whether the log or its index was deleted under a connection of some process; False where that is not
    told.

    The index of the log, which all share, stays that of the deleted one. Whoever opened the file now would
    make a new log, take its zeros for what the index says, and write them into the file in the end. And of
    two processes with an index each, neither knows what the other one has added to the log.
    """
    suspects = _at_each_look(lambda: _without_it(path))
    files = map(_names_of_open_files, suspects)
    return any(not names or any("-shm" in name for name in names) for names in files)  # some index it has


def _at_each_look(found: Callable[[], set[_T]]) -> set[_T]:
    """What is found all along: who only begins or ends something is found for a moment."""
    suspects = found()
    for _ in range(_LOOKS):
        if not suspects:
            break
        time.sleep(_LOOK_EVERY_S)
        suspects &= found()
    return suspects


def _reading(path: str) -> set[tuple[str, int]]:
    """The processes in whose transactions the file stays as it was, each with its lock. Who has one for
    itself alone moves what is in the log, or begins to read."""
    index = index_of(path)
    return {(pid, byte) for byte in _LOG_READER_BYTES for kind, pid in _locks(index, byte) if kind == "READ"}


def _without_it(path: str) -> set[str]:
    """The processes that read the file and do not seem to have the log and the index that are beside it."""
    log = log_of(path)
    has_users, has_log = is_in_use(path), os.path.exists(log)
    if has_users and has_log:
        return set()
    readers = {pid for kind, pid in _locks(path, READER_BYTE) if kind == "READ"}
    if not has_users and not has_log:  # they were deleted together, or none has them yet
        readers = {pid for pid in readers if f"{log} (deleted)" in _names_of_open_files(pid)}
    return readers


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
        lines = _shown_locks()
    except OSError:
        return
    on_any = [each for each in covering(lines, byte) if each[2].rpartition(":")[2] == str(file[1])]
    device = device_of(path) if on_any else None  # files of several file systems have the same number
    for kind, pid, locked in on_any:
        major, minor, _ = locked.split(":")
        if device is None or device == (int(major, 16), int(minor, 16)):
            yield kind, pid


def _shown_locks() -> set[str]:
    """All that the kernel shows of locks, without their numbers.

    It shows a page at a time, counts how many it has shown, and goes on behind those: what is unlocked among
    them between two pages moves the next locks to where nobody looks any more. So the list is read until it
    stays as it is, some times at most, and each time the pages end where they had their middle the time
    before.
    """
    seen: set[bytes] = set()
    before = None
    for first_bytes in (2 * _PAGE_BYTES, _PAGE_BYTES // 2) * _MOST_READINGS:
        with _LOCKS.open("rb", buffering=0) as shown:
            pages = [shown.read(first_bytes), *iter(partial(shown.read, 2 * _PAGE_BYTES), b"")]
        found = {line.partition(b": ")[2] for line in b"".join(pages).splitlines()}
        seen |= found
        if found == before:
            break
        before = found
    return {line.decode() for line in seen}


def covering(lines: Iterable[str], byte: int) -> Iterator[tuple[str, str, str]]:
    """Kind, process and file of the locks that cover the byte, of those that the kernel shows."""
    # "POSIX  ADVISORY  WRITE 4711 fe:00:1234 120 120"; two that touch each other are shown as one
    for *_, kind, pid, locked, first, last in (line.split() for line in lines):
        if int(first) <= byte and (last == "EOF" or byte <= int(last)):
            yield kind, pid, locked
