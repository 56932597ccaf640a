"""Both ends of a worker's ticket pipe: who takes the ticket of a claim may start that claim, or give it back.

A worker that holds several claims writes a ticket for each that it does not start at once. Worker and
supervisor both read from this pipe; a ticket comes to one of them alone, because the kernel gives each byte
out once. Tickets have one size, and every write and read is of whole ones, so none is ever torn.

While a worker is in a job, claims may be on their way to it in a reply that it has not read. Nobody knows
their keys, so one ticket stands for all of them: that of the reply.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from qml_mp.core.job import KEY_BYTES, ClaimKey
from qml_mp.ipc.pipe import open_pipe, unpacked_key

TICKET_BYTES = KEY_BYTES
MOST_HELD = 100
"""Claims that a worker holds at most: their tickets fit into the smallest pipe of all, which is a page."""
_READ_BYTES = TICKET_BYTES * 128
_NO_JOB = "00000000-0000-0000-0000-000000000000"


def reply_ticket(number: int) -> ClaimKey:
    """The ticket of a worker's `number`th reply, from 1 on: of a claim that no job ever has."""
    return ClaimKey(job_id=_NO_JOB, claim_seq=-number)


class TicketPipe:
    """Both processes hold both ends, so that nobody ever meets the end of the file. Nothing here waits."""

    def __init__(self) -> None:
        self.reading_fd, self._writing_fd = open_pipe()

    @property
    def fds(self) -> frozenset[int]:
        """Both ends."""
        return frozenset((self.reading_fd, self._writing_fd))

    def write(self, keys: Sequence[ClaimKey]) -> int:
        """Write a ticket for each, in this order (worker); how many there was room for."""
        data = b"".join([key.packed for key in keys])
        try:
            return os.write(self._writing_fd, data) // TICKET_BYTES if data else 0
        except BlockingIOError:
            return 0

    def take(self) -> bytes | None:
        """Take the oldest ticket, which is the key of its claim, packed; None: there is none."""
        try:
            data = os.read(self.reading_fd, TICKET_BYTES)
        except BlockingIOError:
            return None
        return data if len(data) == TICKET_BYTES else None

    def take_all(self) -> list[ClaimKey]:
        """Take every ticket that there is, oldest first."""
        keys: list[ClaimKey] = []
        while True:
            try:
                data = os.read(self.reading_fd, _READ_BYTES)
            except BlockingIOError:
                return keys
            size = len(data) // TICKET_BYTES * TICKET_BYTES  # all of it, unless a job has written here
            if not size:
                return keys
            found = (unpacked_key(data[at : at + TICKET_BYTES]) for at in range(0, size, TICKET_BYTES))
            keys += [key for key in found if key is not None]

    def close(self) -> None:
        """Close both ends in this process."""
        for fd in self.fds:
            os.close(fd)
