"""Supervisor: SIGKILL for a process and its group, whichever group the process itself has moved to.

A job can leave the group that its worker leads (for the supervisor's own, even), and can start processes
that stay in it. So the process and the group are killed each by itself: the group is named by the
worker's pid, which nobody else is given as long as the worker is not reaped or its group has members.
"""

from __future__ import annotations

import contextlib
import os
import signal

from qml_mp import host
from qml_mp.core.server_info import ProcessIdentity


def kill_child(pid: int) -> None:
    """Kill a child of this process that is not reaped yet, and its group; harmless when it is dead."""
    _kill_group(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_stranger(process: ProcessIdentity) -> None:
    """Kill a worker that is no child of this process, and its group; or what is left of its group.

    Nothing is signalled when the pid has been given to another process.
    """
    pidfd = pidfd_of(process.pid)  # opened before the question, so that it is the answer's process
    try:
        try:
            if host.identity(process.pid) != process:
                return
        except ProcessLookupError:
            pass  # nobody's: the group, if there is one, has outlived its leader
        _kill_group(process.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            elif not hasattr(os, "pidfd_open"):
                os.kill(process.pid, signal.SIGKILL)
    finally:
        if pidfd is not None:
            os.close(pidfd)


def pidfd_of(pid: int) -> int | None:
    """A pidfd; None: there is no such process, no descriptor is left for it, or the system has no pidfds."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return None


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a zombie
        os.killpg(pid, signal.SIGKILL)
