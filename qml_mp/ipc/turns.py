"""Workers: whose turn it is to write to a storage that lets one process write at a time.

Without it, each that finds the lock of such a storage taken looks again after a pause: two lose a quarter of
what they could do by looking too late, and of sixteen the looks themselves cost the most. Here they wait in a
queue of the kernel, which wakes the one that waits longest.

The turn is a message in a pair of sockets: who reads it writes to the storage, and then sends it on. It does
not guard anything, which is what the storage's own lock is for. So it may be missing (its worker was killed;
then nobody waits for longer than `_PATIENCE_S`, and the supervisor sends another), and there may be two for a
moment (who has waited in vain sends one on too): whoever takes one takes all that are there.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import suppress

_PATIENCE_S = 0.1
"""Longer than a commit takes, save on a slow disk. Then the lock itself is looked for."""


class Turns:
    """Those of all workers of a supervisor, made before the first fork."""

    def __init__(self, *, patience_s: float = _PATIENCE_S) -> None:
        sending, waiting = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        sending.setblocking(False)
        # The kernel's own bound, since only a plain read stands in line: after a poll all would be woken.
        waiting.setblocking(True)
        bound = struct.pack("ll", int(patience_s), int(patience_s % 1 * 1e6))
        waiting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
        self._sending_fd, self._waiting_fd = sending.detach(), waiting.detach()
        self._more = select.poll()
        self._more.register(self._waiting_fd, select.POLLIN)
        self.give()

    @property
    def fds(self) -> frozenset[int]:
        """Both sockets."""
        return frozenset((self._sending_fd, self._waiting_fd))

    def take(self) -> None:
        """Wait until it is this worker's turn, or for so long that nobody can have it."""
        with suppress(BlockingIOError):
            os.read(self._waiting_fd, 1)
            while self._more.poll(0):
                os.read(self._waiting_fd, 1)

    def give(self) -> None:
        """It is somebody else's turn. Called by a worker after each `take`, and by the supervisor when
        one has died, which may have had it."""
        with suppress(BlockingIOError):  # there are several already
            os.write(self._sending_fd, b"\0")

    def close(self) -> None:
        """Close both sockets in this process."""
        for fd in self.fds:
            os.close(fd)
