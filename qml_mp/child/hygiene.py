"""Worker: what a job may have left behind in its process, put back before anything is written.

Reset: standard streams, process group, current directory, umask, environment, signal handlers, mask and
timers, soft resource limits, locale. What cannot be put back makes the worker leave, with the reason.
Other descriptors are only checked: when one of ours is not the file it was, nothing may be written
through any of them.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import fcntl
import locale
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from qml_mp import host
from qml_mp.child.exits import WorkerExit
from qml_mp.core.outcome import AttemptKind, Cancelled, Failure, Outcome, Release, Retry
from qml_mp.ipc.slot import SlotWriter
from qml_mp.ipc.stack import write_stacks_to
from qml_mp.standard_streams import STREAMS, occupy_standard_streams
from qml_mp.storage.store import Storage

_Handler = Any  # what signal.getsignal returns: a callable, a number or None
_SIGNALS = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))
# As the interpreter has it: what `signal` makes an enum of, for 62 signals after every job, takes 50 µs.
_handler_of: Callable[[int], _Handler] = _signal.getsignal
_LIMITS = tuple(sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}))
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SPARE_FDS = 32  # what a worker may need at once: a connection, a file of the app, a fork


class Hygiene:
    """Made when the worker is ready; asked before and after each job."""

    def __init__(
        self, storage: Storage, *, slot: SlotWriter, pipe_fd: int, stack_fd: int, streams: StandardStreams
    ) -> None:
        """`pipe_fd` and `stack_fd` are the worker's ends: nobody but a job closes those."""
        self._storage = storage
        self._slot = slot
        self._vital_fds = streams.spares | {pipe_fd, stack_fd}
        self._stack_fd = stack_fd
        self._streams = streams
        self._pid = os.getpid()
        # What the process looked like when the worker was ready.
        self._directory = os.getcwd()
        self._umask = _umask()
        self._environment = dict(os.environ)
        self._handlers = {number: _handler_of(number) for number in _SIGNALS}
        self._limits = {limit: resource.getrlimit(limit) for limit in _LIMITS}
        self._locale = locale.setlocale(locale.LC_ALL)
        self._files: dict[int, tuple[int, int] | None] = {}

    def before_job(self) -> None:
        """Note which file each descriptor is that is ours; those of the app and its jobs are theirs."""
        self._files = {fd: _file_of(fd) for fd in self._vital_fds | self._storage.descriptors()}

    def after_job(self, outcome: Outcome) -> str | None:
        """Put everything back; why the worker must leave, or None. Does not return in a copy of the worker,
        which the job has forked, nor in a worker that must leave at once."""
        if os.getpid() != self._pid:
            os._exit(0)  # the job forked and let the copy return
        self._check_descriptors()
        try:
            self._restore()
        except (OSError, ValueError, locale.Error) as error:
            return f"a job changed its surroundings and they cannot be put back: {error}"
        if _was_ended(outcome) and host.shares_its_group(self._pid) is not False:
            # Nobody waits for them any more; the supervisor kills the group of a worker that left.
            return "a job that was ended has left processes"
        return _shortage()

    def check_transaction(self) -> None:
        """When writing fails: does not return if a job has left a transaction open that keeps all from it."""
        if self._storage.is_locked_by_this_process():
            self._slot.say("The job has left a transaction open, in which nobody else can write.")
            os._exit(WorkerExit.BROKEN)  # which ends the transaction

    def _check_descriptors(self) -> None:
        # When a job forks, storage closes its connection first, and the numbers are free for the job to use.
        storage_fds = self._storage.descriptors()
        changed = {fd for fd, file in self._files.items() if _file_of(fd) != file}
        if changed & self._vital_fds or any(_file_of(fd) is not None for fd in changed & storage_fds):
            # The connection to storage may be somebody else's file now: not one byte more.
            self._slot.say("The job closed or replaced descriptors of the worker.")
            os._exit(WorkerExit.BROKEN)
        if changed & storage_fds:
            self._storage.close()  # its number may be gone; the next use opens another

    def _restore(self) -> None:
        self._streams.put_back()
        if os.getpgrp() != os.getpid():
            os.setpgid(0, 0)  # or what the next job starts could not be found by the group
        if _current_directory() != self._directory:
            os.chdir(self._directory)
        os.umask(self._umask)
        if dict(os.environ) != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
        for timer in _TIMERS:
            signal.setitimer(timer, 0)  # before its handler goes, or it would kill the next job
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            if handler is not None and _handler_of(number) is not handler:
                signal.signal(number, handler)
        write_stacks_to(self._stack_fd)  # whose handlers are not Python's: the lines above do not see them
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for limit, bounds in self._limits.items():
            if resource.getrlimit(limit) != bounds:
                resource.setrlimit(limit, bounds)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)


def _was_ended(outcome: Outcome) -> bool:
    """Whether the job was ended from outside, and may not have cleaned up."""
    match outcome:
        case Cancelled() | Release():
            return True
        case Retry(kind=kind) | Failure(kind=kind):
            return kind is AttemptKind.TIMEOUT
        case _:
            return False


def _umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now


def _current_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None  # it was removed under us


def _shortage() -> str | None:
    """Why the descriptors that jobs have left open leave too few to work with; None: they do not."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest_free = os.dup(0)
        os.close(lowest_free)
    except OSError:
        lowest_free = most
    if most == resource.RLIM_INFINITY or lowest_free + _SPARE_FDS < most:
        return None
    return f"jobs have left nearly all of its {most} descriptors open"


class StandardStreams:
    """Made when the worker is ready: an app may have redirected them for good at its import."""

    def __init__(self) -> None:
        occupy_standard_streams()
        self._files = {fd: _file_of(fd) for fd in STREAMS}
        self._spares = {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(STREAMS)) for fd in STREAMS}
        self._out, self._err = sys.stdout, sys.stderr

    @property
    def spares(self) -> frozenset[int]:
        """Copies to put back. Nobody but a job closes these."""
        return frozenset(self._spares.values())

    def put_back(self) -> None:
        """Have all as it was; the spares must be what they were. Raises `ValueError` when a job has closed
        what `print` writes to."""
        for fd, file in self._files.items():
            if _file_of(fd) != file:
                os.dup2(self._spares[fd], fd)
        sys.stdout, sys.stderr = self._out, self._err
        if any(stream is not None and stream.closed for stream in (self._out, self._err)):
            raise ValueError("sys.stdout or sys.stderr is closed")


def _file_of(fd: int) -> tuple[int, int] | None:
    """What tells the open file from any other; None: the descriptor is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
