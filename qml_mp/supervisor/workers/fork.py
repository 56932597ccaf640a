"""Supervisor, guardian and host: the only fork of the system, and the handle by which a child is watched and
ended.

A child's pid stays its own until it is reaped, so signals to it and to its group cannot hit a
stranger before that; nothing is signalled after.

A job can leave the group that its worker leads (for the supervisor's own, even), and can start processes
that stay in it. So the process and the group are killed each by itself: the group is named by the
worker's pid, which nobody else is given as long as the worker is not reaped or its group has members.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from qml_mp import failpoints, host
from qml_mp.child.exits import WorkerExit, exit_with
from qml_mp.child.prologue import block_signals, prctl, prologue, unblock_signals
from qml_mp.core.outcome import ProcessFacts
from qml_mp.core.server_info import ProcessIdentity
from qml_mp.errors import ConfigurationError
from qml_mp.ipc.pipe import open_pipe
from qml_mp.supervisor.wait import wait_for

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

    def signal(self, number: int) -> bool:
        """Send a signal to the process alone; harmless when it is dead. False: this process may not, because
        the child has become another user's."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass
        except PermissionError:
            return False
        return True

    def kill(self) -> bool:
        """SIGKILL the process, wherever it is, and whatever its jobs started in its group; as `signal`."""
        _kill_group(self.pid)
        return self.signal(signal.SIGKILL)

    def abandon(self) -> None:
        """Let go of it although it may live; nobody collects it."""
        for fd in self.fds:
            os.close(fd)


def fork_child(
    main: Callable[[], int],
    *,
    ours: Collection[int],
    theirs: Collection[int],
    shared: Collection[int] = (),
    own_fds: Collection[int] = (),
    die_with_parent: bool = False,
) -> Child:
    """Fork a child that runs `main` after the prologue and leaves with the code that it returns.

    The ends `ours` and `theirs` were made for this child: what is not in both is closed on the other side,
    and after an error all of it. The child keeps `shared`, which others have too, and closes the rest of
    `own_fds`: what else the supervisor holds.
    With `die_with_parent` the kernel sends it a SIGTERM when this process dies (Linux).
    The child starts with all signals blocked: `main` unblocks them when its handlers are in place.
    Raises `OSError` when the system has no room for a process, `ConfigurationError` when this process has
    other threads that run Python code (a lock that one holds would stay locked in the child for ever).
    """
    with _ends_closed(ours=ours, theirs=theirs):
        threads = host.other_python_threads()
        if threads:
            raise ConfigurationError(
                f"Cannot fork: this process has {len(threads) + 1} threads of Python (besides this one "
                f"{', '.join(threads)}), which copies of it would lack. Start none before run(), or use "
                "start(), which supervises from a process of its own. Logging handlers start some, too, at "
                "their first record: with preload they work here."
            )
        # The copy would lack the native thread of a pending dump, and calling that off waits for the thread.
        faulthandler.cancel_dump_traceback_later()
        parent_pid = os.getpid()
        _flush()
        if die_with_parent and sys.platform == "linux":
            prctl()
        before = block_signals()
        try:
            failpoints.hit("fork.before")
            # Python 3.12 and newer warn of native threads, too; Python's own were looked for above.
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
                pid = os.fork()
            if pid == 0:
                _child(main, {*own_fds, *ours}, {*theirs, *shared}, parent_pid if die_with_parent else None)
            failpoints.hit("fork.after")
            with contextlib.suppress(OSError):  # the child does the same; whoever is first
                os.setpgid(pid, pid)
            return Child(pid=pid, pidfd=pidfd_of(pid), started_ticks=started_ticks_of(pid))
        finally:
            unblock_signals(before)


def fork_to_ask(question: Callable[[], str], *, own_fds: Collection[int]) -> tuple[int, Child]:
    """Fork a child that writes what the question says to a pipe, and leaves: the end to read, and the child.
    Raises as `fork_child`."""
    reading, writing = open_pipe()

    def answer() -> int:
        unblock_signals()
        os.set_blocking(writing, True)
        with os.fdopen(writing, "w") as stream:
            stream.write(question())
        return 0

    child = fork_child(answer, ours={reading}, theirs={writing}, own_fds=own_fds, die_with_parent=True)
    return reading, child


def reap(child: Child) -> ProcessFacts | None:
    """Collect a dead child and what the kernel knows of it; None while it lives.

    What is left of its process group is killed first, while its pid still guards the group's id.
    """
    try:
        collected = _collect(child)
    except ChildProcessError:
        return _look_from_outside(child)
    if collected is None:
        return None
    status, usage = collected
    if child.pidfd is not None:
        os.close(child.pidfd)
    code = os.waitstatus_to_exitcode(status)
    return ProcessFacts(
        pid=child.pid,
        signal=-code if code < 0 else None,
        exit_code=code if code >= 0 else None,
        peak_rss_bytes=usage.ru_maxrss * _RSS_UNIT_BYTES,
        cpu_s=usage.ru_utime + usage.ru_stime,
    )


def kill_and_reap(child: Child) -> None:
    """End a child, and wait until it has ended; one that this process may not signal is abandoned."""
    while True:
        was_signalled = child.kill()
        if reap(child) is not None:
            return
        if not was_signalled:
            child.abandon()
            return
        wait_for(child.fds, until=time.monotonic() + _LOOK_EVERY_S)


def kill_stranger(process: ProcessIdentity) -> None:
    """Kill a worker that is no child of this process, and its group; or what is left of its group.

    Nothing is signalled when the pid has been given to another process.
    """
    _signal_stranger(process, signal.SIGKILL)


def ask_stranger(process: ProcessIdentity) -> None:
    """Ask a worker that is no child of this process to leave (SIGTERM); harmless when it is gone."""
    _signal_stranger(process, signal.SIGTERM)


def pidfd_of(pid: int) -> int | None:
    """A pidfd; None: there is no such process, no descriptor is left for it, or the system has no pidfds."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return None


def started_ticks_of(pid: int) -> int:
    """When the process began, as its host counts it; 0: it is gone."""
    try:
        return host.identity(pid).started_ticks
    except ProcessLookupError:
        return 0


@contextlib.contextmanager
def _ends_closed(*, ours: Collection[int], theirs: Collection[int]) -> Iterator[None]:
    """Those of the child alone are closed after the block, ours after an error."""
    try:
        yield
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in set(theirs).difference(ours):
            os.close(fd)


def _signal_stranger(process: ProcessIdentity, number: int) -> None:
    pidfd = pidfd_of(process.pid)  # opened before the question, so that it is the answer's process
    try:
        try:
            if host.identity(process.pid) != process:
                return
        except ProcessLookupError:
            pass  # nobody's: the group, if there is one, has outlived its leader
        if number == signal.SIGKILL:
            _kill_group(process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, number)
            elif not hasattr(os, "pidfd_open"):
                os.kill(process.pid, number)
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _collect(child: Child) -> tuple[int, resource.struct_rusage] | None:
    if hasattr(os, "waitid"):
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        child.kill()
        _, status, usage = os.wait4(child.pid, 0)
    else:  # macOS before Python 3.13: no look without collecting; what is in the group still guards its id
        pid, status, usage = os.wait4(child.pid, os.WNOHANG)
        if not pid:
            return None
        _kill_group(child.pid)
    return status, usage


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a zombie
        os.killpg(pid, signal.SIGKILL)


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
        exit_with(code)


def _flush() -> None:
    """What is buffered must not be printed twice."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
