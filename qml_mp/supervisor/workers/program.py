"""Supervisor: a program of ours in a fresh interpreter, with a pipe to it and one back.

Nothing of the supervisor's memory goes along, and of its descriptors the two pipe ends and standard error.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from qml_mp import host
from qml_mp.ipc.pipe import open_pipe
from qml_mp.supervisor.workers.fork import Child, pidfd_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedProgram:
    """A program that runs."""

    child: Child
    to_fd: int
    """The writing end of its standard input. No other process holds it, so its end is this process's."""
    from_fd: int
    """The reading end of its standard output."""

    @property
    def fds(self) -> list[int]:
        """All descriptors of it."""
        return [*self.child.fds, self.to_fd, self.from_fd]

    def close(self) -> None:
        """The ends of the pipes; the child is collected by `reap`."""
        os.close(self.to_fd)
        os.close(self.from_fd)


def start_program(arguments: Sequence[str]) -> StartedProgram:
    """Run `python -m arguments…` in a process group of its own. Neither end of the pipes here ever waits.

    Raises `OSError` when the system has no room for it, and leaves nothing behind then.
    """
    import subprocess  # few servers need it, and every worker would have it

    opened: list[int] = []
    try:
        standard_input, to_fd = open_pipe()
        opened += standard_input, to_fd
        from_fd, standard_output = open_pipe()
        opened += from_fd, standard_output
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=standard_input,
            stdout=standard_output,
            process_group=0,  # the terminal's Ctrl-C is the supervisor's affair
        )
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    os.close(standard_input)
    os.close(standard_output)
    process.returncode = 0  # collected by its Child, not by the Popen object
    child = Child(pid=process.pid, pidfd=pidfd_of(process.pid), started_ticks=_started_ticks(process.pid))
    return StartedProgram(child=child, to_fd=to_fd, from_fd=from_fd)


def _started_ticks(pid: int) -> int:
    try:
        return host.identity(pid).started_ticks
    except ProcessLookupError:
        return 0
