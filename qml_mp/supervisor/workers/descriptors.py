"""Supervisor: whether there is room for another worker: descriptors of its own, and a process.

Each worker costs its supervisor five of them. Some are kept free whatever the number of workers that are
wanted: without a connection to storage, a guardian or a look into /proc, the workers would be of no use.
"""

from __future__ import annotations

import errno
import logging
import os
import resource

from qml_mp.clock import Clock

logger = logging.getLogger(__name__)

_FOR_A_WORKER = 6  # both ends of its pipe and of its tickets, its stack file, its pidfd
_FOR_OURSELVES = 32
"""Connections with what they look up, wake-ups, bell, turns, guardian, side processes, reload, log, /proc."""
_TRY_AGAIN_S = 10.0
_FIRST_PAUSE_S = 0.5  # doubles: others of the machine may leave room for a process at any time
_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_OF_PROCESSES = (errno.EAGAIN, errno.ENOMEM)


class Room:
    """What the newest try to fork a worker has found out."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._again_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self.shortage: str | None = None
        """Why fewer workers run than are wanted; None: as many run."""

    @property
    def is_full(self) -> bool:
        """Whether another try would fail: nothing was freed, and the pause is not over."""
        return self._clock.monotonic() < self._again_at

    def check(self) -> None:
        """Raises `OSError` when one more worker would leave too few descriptors for the supervisor."""
        tried: list[int] = []
        try:
            while len(tried) < _FOR_A_WORKER + _FOR_OURSELVES:
                tried.append(os.dup(0))
        finally:
            for fd in tried:
                os.close(fd)

    def ran_out(self, error: OSError, *, running: int, wanted: int) -> bool:
        """Whether the error means that descriptors, processes or memory have run out; then it is logged, once
        for each number."""
        told = f"{running} run, {wanted} are wanted"
        if error.errno in _OF_DESCRIPTORS:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            text = (
                f"No descriptors are left for another worker: {told}, and the server may open {limit} files. "
                "Raise the limit (ulimit -n, LimitNOFILE=) or ask for fewer workers"
            )
            pause_s = _TRY_AGAIN_S
        elif error.errno in _OF_PROCESSES:
            text = (
                f"The system has no room for another worker: {told} ({error.strerror}). Raise the limit of "
                "processes (ulimit -u, TasksMax=, --pids-limit) or of memory, or ask for fewer workers"
            )
            pause_s = self._pause_s
            self._pause_s = min(2 * pause_s, _TRY_AGAIN_S)
        else:
            return False
        self._again_at = self._clock.monotonic() + pause_s
        if text != self.shortage:
            logger.error("%s", text)
        self.shortage = text
        return True

    def note_bar(self, why: str) -> None:
        """No other worker can be forked for now. Logged once, whatever threads it names, and as a warning: a
        report of an error may be sent by one thread more, and so on."""
        if self.shortage is None:
            logger.warning("%s", why)
        self.shortage = why

    def freed(self) -> None:
        self._again_at = 0.0

    def suffices(self) -> None:
        self._pause_s = _FIRST_PAUSE_S
        if self.shortage is not None:
            logger.info("All workers that are wanted run again")
            self.shortage = None
