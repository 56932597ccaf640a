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
import socket
import struct
from contextlib import suppress

_PATIENCE_S = 0.1
"""Longer than a commit takes, save on a slow disk. Then the lock itself is looked for."""


class Turns:
    """Those of all workers of a supervisor, made before the first fork."""

    def __init__(self, *, patience_s: float = _PATIENCE_S) -> None:
        self._sending, self._waiting = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sending.setblocking(False)
        # The kernel's own bound, since only a plain read stands in line: after a poll all would be woken.
        self._waiting.setblocking(True)
        bound = struct.pack("ll", int(patience_s), int(patience_s % 1 * 1e6))
        self._waiting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bound)
        self.give()

    @property
    def fds(self) -> frozenset[int]:
        """Both sockets."""
        return frozenset((self._sending.fileno(), self._waiting.fileno()))

    def take(self) -> None:
        """Wait until it is this worker's turn, or for so long that nobody can have it."""
        with suppress(BlockingIOError):
            os.read(self._waiting.fileno(), 1)
            while True:
                self._waiting.recv(1, socket.MSG_DONTWAIT)

    def give(self) -> None:
        """It is somebody else's turn. Called by a worker after each `take`, and by the supervisor when
        one has died, which may have had it."""
        with suppress(BlockingIOError):  # there are several already
            self._sending.send(b"\0")

    def close(self) -> None:
        """Close both sockets in this process."""
        self._sending.close()
        self._waiting.close()
