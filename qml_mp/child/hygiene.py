"""Worker: what a job may have changed in its process, put back before the next job.

Reset: current directory, umask, environment, signal handlers, mask and timers, soft resource
limits, locale. What cannot be put back makes the worker leave, with the reason. Descriptors are
only checked: when one of ours is not the file it was, nothing may be written through any of them.
"""

from __future__ import annotations

import locale
import os
import resource
import signal
from dataclasses import dataclass
from enum import Enum
from typing import Any

_Handler = Any  # what signal.getsignal returns: a callable, an enum or None
# Those that code is known to touch; each costs a look after every job.
_SIGNAL_NAMES = ("TERM", "INT", "HUP", "QUIT", "ALRM", "USR1", "USR2", "PIPE", "CHLD", "TSTP", "CONT", "TTOU")
_SIGNALS = tuple(getattr(signal, f"SIG{name}") for name in _SIGNAL_NAMES)
_LIMIT_NAMES = ("AS", "CORE", "CPU", "DATA", "FSIZE", "NOFILE", "STACK")
_LIMITS = tuple(
    getattr(resource, f"RLIMIT_{name}") for name in _LIMIT_NAMES if hasattr(resource, f"RLIMIT_{name}")
)


_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SPARE_FDS = 32  # what a worker may need at once: a connection, a file of the app, a fork


@dataclass(frozen=True, slots=True, kw_only=True)
class _Surroundings:
    """What the process looked like when the worker was ready."""

    directory: str
    umask: int
    environment: dict[str, str]
    handlers: dict[int, _Handler]
    limits: dict[int, tuple[int, int]]
    locale: str


class Descriptors(Enum):
    """What became of the worker's descriptors during a job."""

    OURS = 1
    SOME_CLOSED = 2
    """The storage's, by a job that closes too much."""
    REPLACED = 3
    """A number of ours is another file now, or a vital one is closed."""


class Hygiene:
    """Made when the worker is ready; asked before and after each job."""

    def __init__(self, vital_fds: frozenset[int]) -> None:
        """`vital_fds` are the worker's ends of pipe and stack file: nobody but a job closes those."""
        self._vital_fds = vital_fds
        self._start = _Surroundings(
            directory=os.getcwd(),
            umask=_umask(),
            environment=dict(os.environ),
            handlers={number: signal.getsignal(number) for number in _SIGNALS},
            limits={limit: resource.getrlimit(limit) for limit in _LIMITS},
            locale=locale.setlocale(locale.LC_ALL),
        )
        self._files: dict[int, tuple[int, int] | None] = {}

    def before_job(self, storage_fds: frozenset[int]) -> None:
        """Note which file each descriptor is that is ours; those of the app and its jobs are theirs."""
        self._files = {fd: _file_of(fd) for fd in self._vital_fds | storage_fds}

    def descriptors(self, storage_fds: frozenset[int]) -> Descriptors:
        """What the job did to our descriptors. `storage_fds` are those that the storage has now: when a
        job forks it closes its connection first, and the numbers are free for the job to use."""
        changed = {fd for fd, file in self._files.items() if _file_of(fd) != file}
        if changed & self._vital_fds or any(_file_of(fd) is not None for fd in changed & storage_fds):
            return Descriptors.REPLACED
        return Descriptors.SOME_CLOSED if changed & storage_fds else Descriptors.OURS

    def restore(self) -> str | None:
        """Put everything back; why the worker must leave, or None."""
        try:
            self._restore()
        except (OSError, ValueError, locale.Error) as error:
            return f"a job changed its surroundings and they cannot be put back: {error}"
        return _shortage()

    def _restore(self) -> None:
        start = self._start
        if _current_directory() != start.directory:
            os.chdir(start.directory)
        os.umask(start.umask)
        if dict(os.environ) != start.environment:
            os.environ.clear()
            os.environ.update(start.environment)
        for timer in _TIMERS:
            signal.setitimer(timer, 0)  # before its handler goes, or it would kill the next job
        signal.set_wakeup_fd(-1)
        for number, handler in start.handlers.items():
            if signal.getsignal(number) is not handler and handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for limit, bounds in start.limits.items():
            if resource.getrlimit(limit) != bounds:
                resource.setrlimit(limit, bounds)
        if locale.setlocale(locale.LC_ALL) != start.locale:
            locale.setlocale(locale.LC_ALL, start.locale)


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


def _file_of(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
