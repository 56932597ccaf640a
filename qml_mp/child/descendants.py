"""Worker: what the processes that a job forks must not share with their worker.

A copy that reads the pipe would take messages that are not meant for it, and one that kept the
worker's SIGTERM handler could not be terminated by the job that made it (`multiprocessing` ends
its processes so). Programs that a job starts with `subprocess` share nothing of it anyway.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Collection


def cut_off_descendants(*, fds: Collection[int], detach: Callable[[], None]) -> None:
    """Call `detach` in each process that this one forks from now on, and put the null device in the
    place of `fds` there. Once in a worker: what is called at forks cannot be taken back."""
    worker_pid = os.getpid()
    forking = threading.local()  # any thread of a job may fork; each has a signal mask of its own

    def before() -> None:
        # A SIGTERM for the new process waits until the worker's handler is gone from it.
        forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def after_in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, forking.mask)

    def after_in_child() -> None:
        if os.getppid() == worker_pid:  # in a descendant's own child the numbers may be other files
            detach()
            null = os.open(os.devnull, os.O_RDWR)
            for fd in fds:
                os.dup2(null, fd, inheritable=False)
            os.close(null)
        signal.pthread_sigmask(signal.SIG_SETMASK, forking.mask)

    os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)
