"""Both ends of the bell, which a worker rings when it has nothing to do, if its supervisor wants to know.

That a worker has nothing to do stands in its slot, which wakes nobody. While all are busy their supervisor
need not look at each commit, since they look for jobs by themselves. But it must from the moment on at which
one of them waits to be told.
"""

from __future__ import annotations

import contextlib
import mmap
import os

from qml_mp.ipc.pipe import open_pipe

_MOST_RINGS = 4096


class Bell:
    """One for all workers of a supervisor, made before the first fork. Nothing here waits."""

    def __init__(self) -> None:
        self.fd, self.ringing_fd = open_pipe()
        """Readable for the supervisor when it was rung; what the workers ring with."""
        self._is_wanted = mmap.mmap(-1, 1)
        """Written by the supervisor, read by the workers."""

    @property
    def fds(self) -> frozenset[int]:
        """Both ends."""
        return frozenset((self.fd, self.ringing_fd))

    def listen(self) -> None:
        """From now on it is rung (supervisor). Look at the slots after this: who says before it that there is
        nothing to do does not ring."""
        self._is_wanted[0] = 1

    def was_rung(self) -> bool:
        """Since this was asked last (supervisor)."""
        try:
            return bool(os.read(self.fd, _MOST_RINGS))
        except BlockingIOError:
            return False

    def stop_listening(self) -> None:
        """It need not be rung any more (supervisor)."""
        self._is_wanted[0] = 0

    def ring(self) -> None:
        """This worker has nothing to do, and its slot says so already."""
        if self._is_wanted[0]:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it rings, or nobody is there
                os.write(self.ringing_fd, b"\0")

    def close(self) -> None:
        """Close both ends in this process."""
        for fd in self.fds:
            os.close(fd)
