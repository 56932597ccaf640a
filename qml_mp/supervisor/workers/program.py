"""Supervisor and host: a program of ours in a fresh interpreter, with a pipe to it and one back.

It is an interpreter like this one: it has its options, its path and its qml-mp. Nothing of the supervisor's
memory goes along, and of its descriptors the two pipe ends and standard error.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

from qml_mp import host
from qml_mp.errors import ConfigurationError
from qml_mp.ipc.pipe import open_pipe
from qml_mp.supervisor.workers.fork import Child, pidfd_of, started_ticks_of

_RUN_MODULE = """\
import json, runpy, sys
module, qml_mp_in, path = json.loads(sys.argv.pop(1))
sys.path[:] = [qml_mp_in, *path]
import qml_mp
sys.path[:] = path
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""`python -m` would look for qml-mp on a path of its own, and find another one, or none, where this program
has made its path by itself, as with a vendored folder or a zip."""


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


def check_interpreter() -> None:
    """Raise `ConfigurationError` in a program that has no interpreter to start: one that was frozen into a
    single program would start itself, which would start itself again."""
    if getattr(sys, "frozen", False) or not sys.executable:
        raise ConfigurationError(
            "This program is frozen, or embeds Python, so it has no interpreter to start processes with. "
            "Run `qml-mp start` beside it; or start the server without web and metrics, and while the "
            "program has neither threads nor connections of its own to the SQLite file."
        )


def command_of(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this very qml-mp as `python -m module arguments…` would. Raises as
    `check_interpreter`."""
    import subprocess

    check_interpreter()
    qml_mp_in = os.path.dirname(os.path.dirname(os.path.abspath(host.__file__)))
    path = [entry for entry in sys.path if isinstance(entry, str)]  # what else is there is never searched
    # As multiprocessing does, which has no public name for it either.
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    return [sys.executable, *options, "-c", _RUN_MODULE, json.dumps([module, qml_mp_in, path]), *arguments]


def start_program(module: str, *arguments: str) -> StartedProgram:
    """Run `command_of` the module in a process group of its own. Neither end of the pipes here ever waits.

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
            command_of(module, *arguments),
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
    child = Child(pid=process.pid, pidfd=pidfd_of(process.pid), started_ticks=started_ticks_of(process.pid))
    return StartedProgram(child=child, to_fd=to_fd, from_fd=from_fd)
