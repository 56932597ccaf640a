"""Supervisor: the only fork of the system, and the handle by which a child is watched and ended.

A child's pid stays its own until it is reaped, so signals to it and to its group cannot hit a
stranger before that; nothing is signalled after.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass

from qml_mp import failpoints, host
from qml_mp.child.exits import WorkerExit, leave
from qml_mp.child.prologue import prologue
from qml_mp.core.outcome import ProcessFacts
from qml_mp.errors import ConfigurationError
from qml_mp.supervisor.wait import wait_for
from qml_mp.supervisor.workers.killing import kill_child, pidfd_of

_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A forked process that has not been reaped yet."""

    pid: int
    pidfd: int | None
    """Readable when the process has died; None where the system has no pidfds (SIGCHLD tells)."""
    started_ticks: int

    @property
    def fds(self) -> list[int]:
        """Its pidfd, to be waited for."""
        return [] if self.pidfd is None else [self.pidfd]

    def signal(self, number: int) -> None:
        """Send a signal to the process alone; harmless when it is dead."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL the process, wherever it is, and whatever its jobs started in its group."""
        kill_child(self.pid)


def fork_child(
    main: Callable[[], int],
    *,
    own_fds: Collection[int],
    keep_fds: Collection[int] = (),
    die_with_parent: bool = False,
) -> Child:
    """Fork a child that runs `main` after the prologue and leaves with the code that it returns.

    With `die_with_parent` the kernel sends it a SIGTERM when this process dies (Linux).
    The child starts with all signals blocked: `main` unblocks them when its handlers are in place.
    Raises `OSError` when the system has no room for a process, `ConfigurationError` when this
    process has threads (a lock that one holds would stay locked in the child for ever).
    """
    threads = host.thread_count()
    if threads is not None and threads > 1:
        raise ConfigurationError(
            f"Cannot fork workers: this process has {threads} threads. "
            "Start no thread before run(), or use start(), which supervises from a process of its own."
        )
    parent_pid = os.getpid()
    _flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        failpoints.hit("fork.before")
        pid = os.fork()
        if pid == 0:
            _child(main, own_fds, keep_fds, parent_pid if die_with_parent else None)
        failpoints.hit("fork.after")
        with contextlib.suppress(OSError):  # the child does the same; whoever is first
            os.setpgid(pid, pid)
        return Child(pid=pid, pidfd=pidfd_of(pid), started_ticks=_started_ticks(pid))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def reap(child: Child) -> ProcessFacts | None:
    """Collect a dead child and what the kernel knows of it; None while it lives.

    What is left of its process group is killed first, while its pid still guards the group's id.
    """
    try:
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
    except ChildProcessError:
        return _look_from_outside(child)
    child.kill()
    if child.pidfd is not None:
        os.close(child.pidfd)
    _, status, usage = os.wait4(child.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return ProcessFacts(
        pid=child.pid,
        signal=-code if code < 0 else None,
        exit_code=code if code >= 0 else None,
        peak_rss_bytes=usage.ru_maxrss * _RSS_UNIT_BYTES,
        cpu_s=usage.ru_utime + usage.ru_stime,
    )


def kill_and_reap(child: Child) -> None:
    """End a child, and wait until it has ended."""
    child.kill()
    while reap(child) is None:
        wait_for(child.fds, until=time.monotonic() + _LOOK_EVERY_S)


def _look_from_outside(child: Child) -> ProcessFacts | None:
    """It is no child of this process: a host that waits for any child has collected it, or we
    are a copy that the host has forked. Its pid may be a stranger's: no signal is sent."""
    if child.pidfd is not None:
        if not wait_for([child.pidfd], until=0):
            return None
        os.close(child.pidfd)
    return ProcessFacts(pid=child.pid)


def _child(
    main: Callable[[], int],
    own_fds: Collection[int],
    keep_fds: Collection[int],
    die_with_parent: int | None,
) -> None:
    code: int = WorkerExit.BROKEN
    try:
        prologue(own_fds=own_fds, keep_fds=keep_fds, die_with_parent=die_with_parent)
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        leave(code)


def _started_ticks(pid: int) -> int:
    try:
        return host.identity(pid).started_ticks
    except ProcessLookupError:
        return 0


def _flush() -> None:
    """What is buffered must not be printed twice."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
