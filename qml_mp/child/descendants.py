"""Worker: what the processes that a job forks must not share with their worker.

A copy that reads the pipe would take messages that are not meant for it, and one that kept the
worker's SIGTERM handler could not be terminated by the job that made it (`multiprocessing.Pool`
ends its processes so). Programs that a job starts with `subprocess` share nothing of it anyway.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection


def cut_off_descendants(*, fds: Collection[int], let_go: Callable[[], None]) -> None:
    """Call `let_go` in each process that this one forks from now on, and put the null device in the
    place of `fds` there. Once in a worker: what is called at forks cannot be taken back."""
    worker_pid = os.getpid()

    def cut_off() -> None:
        if os.getppid() != worker_pid:
            return  # a descendant's own child, in which the numbers may be other files
        let_go()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in fds:
            os.dup2(null, fd, inheritable=False)
        os.close(null)

    os.register_at_fork(after_in_child=cut_off)
