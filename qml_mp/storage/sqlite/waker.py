"""Supervisor and client: wake-ups from the changes of an SQLite file, on Linux (inotify)."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress

from qml_mp.errors import StorageUnavailable
from qml_mp.storage.sqlite.connection import SqliteConnection
from qml_mp.storage.sqlite.queries.jobs import MOST_COUNTED, RUNNABLE
from qml_mp.storage.sqlite.users import log_of
from qml_mp.storage.waiting import MANY_JOBS, WakeUp

_IN_MODIFY = 0x002
_IN_MOVED_FROM, _IN_MOVED_TO = 0x040, 0x080
_IN_CREATE, _IN_DELETE = 0x100, 0x200
_IN_Q_OVERFLOW = 0x4000
_COMES_OR_GOES = _IN_CREATE | _IN_MOVED_TO | _IN_MOVED_FROM | _IN_DELETE
_EVENT = struct.Struct("iIII")  # struct inotify_event before its name
_EVENTS_BYTES = 16 * 1024
_CLOCK_MONOTONIC = 1
_LIMITS = {
    errno.EMFILE: " Either this process has as many files open as it may (ulimit -n), or its user has as "
    "many processes that watch files as it may (sysctl fs.inotify.max_user_instances).",
    errno.ENOSPC: " Its user watches as many files as it may (sysctl fs.inotify.max_user_watches).",
}
"""What to raise where the kernel refuses: its own words name a full disk, or open files alone."""

_FIRST_LOOK_S = (
    0.0005  # on a quick disk most commits have ended; at 0.001 a job began half a millisecond later
)
_UNHURRIED_LOOK_S = 0.004
_LAST_LOOK_S = 1.0


def open_waker(database: SqliteConnection) -> FileWaker | None:
    """A waker on the database's file; None where the system has no inotify, or Python no epoll: gevent takes
    it away."""
    libc = ctypes.CDLL(None, use_errno=True)
    is_there = hasattr(libc, "inotify_init1") and hasattr(libc, "timerfd_create") and hasattr(select, "epoll")
    if not is_there:
        return None
    return FileWaker(database, libc)


class AnyCommitWaker:
    """`EndedWaker` by a `FileWaker`: a commit tells of itself, and not of whom."""

    def __init__(self, waker: FileWaker) -> None:
        self._waker = waker
        self.fileno = waker.fileno
        self.close = waker.close

    def drain(self) -> Collection[str] | None:
        """Nothing, or anything."""
        return () if self._waker.drain(soon=False) is None else None


class FileWaker:
    """`Waker` of a file.

    The kernel tells of writes to the write-ahead log, which come before their commit can be seen: for our
    own a moment, for those of programs that sync within the commit as long as the disk takes. So after
    such an event `PRAGMA data_version`, which changes with each commit of another connection, is looked at
    soon, and then at growing intervals until any commit must have ended. A wake-up is neither lost to
    a slow disk nor given for a rollback.

    It is looked at through the storage's own connection, whose own commits do not change it: a server
    that sends heartbeats must not wake itself. Its other commits count as those of others do.
    """

    def __init__(self, database: SqliteConnection, libc: ctypes.CDLL) -> None:
        self._libc = libc
        self._database = database
        self._log = log_of(database.path)
        self._look_in_s = _FIRST_LOOK_S
        self._descriptors: list[int] = []
        self._epoll = self._new_epoll()
        try:
            self._inotify = self._own(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
            self._timer = self._own(libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
            # The folder too, because the log comes and goes with the connections to the file. But not what is
            # written to other files in it: a server whose own log lies there would wake with each line.
            self._call(self._watch(os.path.dirname(self._log), _COMES_OR_GOES))
            self._epoll.register(self._inotify, select.EPOLLIN)
            self._epoll.register(self._timer, select.EPOLLIN)
            database.whole(self._data_version)  # a first read, which makes the log
            self._watch_log()
            self._seen = database.whole(self._data_version)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable when the file was written to, or when it is time to look again."""
        return self._epoll.fileno()

    def drain(self, *, soon: bool = True) -> WakeUp | None:
        """What can run now, if anything but a heartbeat of this storage was committed since the last call.
        Raises `StorageUnavailable` when the file cannot be read any more or was deleted."""
        if self._something_happened():
            self._look_again(_FIRST_LOOK_S if soon else _UNHURRIED_LOOK_S)
        elif not self._timer_fired():
            return None
        elif self._look_in_s < _LAST_LOOK_S:
            self._look_again(2 * self._look_in_s)
        before, self._seen = self._seen, self._database.whole(self._data_version)
        if self._seen == before:
            return None
        return WakeUp(jobs=self._database.whole(self._runnable)) if soon else WakeUp()

    def close(self) -> None:
        """Close the descriptors; harmless when closed already. The connection stays the storage's."""
        self._epoll.close()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _data_version(self) -> tuple[int, int, int]:
        # The number compares within one connection only, hence the count of connections beside it.
        with self._database.read() as connection:
            version: int = connection.execute("PRAGMA data_version").fetchone()[0]
            return self._database.opened, self._database.durable_commits, version

    def _runnable(self) -> int:
        # Our own workers' commits look like all others, and mostly leave nothing to wake anybody for.
        with self._database.read() as connection:
            jobs: int = connection.execute(RUNNABLE).fetchone()[0]
        return MANY_JOBS if jobs == MOST_COUNTED else jobs

    def _something_happened(self) -> bool:
        """Whether the log was written to, or it or the file came or went: the next look then says so."""
        log = os.path.basename(self._log)
        found = [
            (mask, name)
            for mask, name in self._events()
            if name in (log, log.removesuffix("-wal")) or mask & (_IN_MODIFY | _IN_Q_OVERFLOW)
        ]
        if any(name == log for _, name in found):
            self._watch_log()  # another one of that name, or none
        return bool(found)

    def _events(self) -> Iterator[tuple[int, str]]:
        """Those that one call gives: somebody may make new ones faster than they are read."""
        try:
            buffer = os.read(self._inotify, _EVENTS_BYTES)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(buffer):
            _, mask, _, name_bytes = _EVENT.unpack_from(buffer, offset)
            offset += _EVENT.size
            yield mask, os.fsdecode(buffer[offset : offset + name_bytes].rstrip(b"\0"))
            offset += name_bytes

    def _watch_log(self) -> None:
        """Also where there is none: it will come, and the folder tells of it."""
        if self._watch(self._log, _IN_MODIFY) < 0 and (number := ctypes.get_errno()) != errno.ENOENT:
            raise self._refused(number)

    def _watch(self, path: str, mask: int) -> int:
        watch: int = self._libc.inotify_add_watch(self._inotify, os.fsencode(path), mask)
        return watch

    def _timer_fired(self) -> bool:
        with suppress(BlockingIOError):
            return bool(os.read(self._timer, 8))
        return False

    def _look_again(self, delay_s: float) -> None:
        self._look_in_s = delay_s
        # struct itimerspec: no interval, then seconds and nanoseconds until it fires once.
        timing = (ctypes.c_long * 4)(0, 0, int(delay_s), int(delay_s % 1 * 1e9))
        self._call(self._libc.timerfd_settime(self._timer, 0, timing, None))

    def _new_epoll(self) -> select.epoll:
        try:
            return select.epoll()
        except OSError as error:  # no descriptors are left, or no memory
            raise self._refused(error.errno or 0) from error

    def _own(self, descriptor: int) -> int:
        self._descriptors.append(self._call(descriptor))
        return descriptor

    def _call(self, result: int) -> int:
        if result < 0:
            raise self._refused(ctypes.get_errno())
        return result

    def _refused(self, number: int) -> StorageUnavailable:
        limit = _LIMITS.get(number, "")
        return StorageUnavailable(f"The kernel refused to watch {self._log}: {os.strerror(number)}.{limit}")
