"""Both ends of the stack file: where faulthandler writes a worker's Python stack without the GIL.

One unnamed file per worker, opened by the supervisor before the fork. The worker hands it to
faulthandler, which writes when the process dies of a fatal signal and whenever `STACK_SIGNAL`
comes; the supervisor reads it. Writes go to the end, so that it can be emptied at any time.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import signal
import tempfile

STACK_SIGNAL: int = signal.SIGWINCH
"""Makes a worker write its stack, also in C code that holds the GIL.

One that does nothing where nobody has asked for it: a job that resets it keeps us from a stack, and is
never killed by the question. No terminal sends it either, because workers are in groups of their own.
"""
_MOST_BYTES = 32 * 1024


def open_stack_file() -> int:
    """A new unnamed file."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("qml-mp-stack", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd


def write_stacks_to(fd: int) -> None:
    """Have this process's stacks written there (worker: at first, and when a job may have undone it)."""
    faulthandler.disable()  # or enabling would leave the handlers as they are
    faulthandler.enable(file=fd, all_threads=True)
    faulthandler.unregister(STACK_SIGNAL)
    faulthandler.register(STACK_SIGNAL, file=fd, all_threads=True, chain=False)


def empty(fd: int) -> None:
    """Forget what was written (supervisor)."""
    os.ftruncate(fd, 0)


def read_stack(fd: int) -> str | None:
    """What was written since it was emptied (the beginning of it, when it is long); None: nothing."""
    return os.pread(fd, _MOST_BYTES, 0).decode(errors="replace").strip() or None
