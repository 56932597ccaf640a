"""Worker: the descriptors that it must not lose to a job, and how many are left.

They are looked at and not put back: when one of them is not the file it was, nothing may be written through
any. Those of the app and its jobs are theirs.
"""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Collection
from math import inf

from qml_mp.host import identity_of_file
from qml_mp.standard_streams import STREAMS
from qml_mp.storage.store import Storage

SPARE_FDS = 32  # what a worker may need at once: a connection, a file of the app, a fork
PLENTY_OF_FDS = 10 * SPARE_FDS  # what short jobs may leave open before it is looked at


class Descriptors:
    """Noted before a job, and looked at after it."""

    def __init__(self, storage: Storage, *, vital: Collection[int]) -> None:
        """`vital` are those beside the storage's, which nobody but a job closes."""
        self._storage = storage
        self._vital = frozenset(vital)
        self._files: dict[int, tuple[int, int] | None] = {}
        self._poll = select.poll()

    def note(self) -> None:
        """This is which file each of them is."""
        self._files = {fd: identity_of_file(fd) for fd in self._vital | self._storage.descriptors()}
        self._poll = select.poll()
        for fd in {*self._files, *STREAMS}:
            self._poll.register(fd, 0)  # it tells all the same which ones are closed

    def one_is_closed(self) -> bool:
        """Whether one of them is, or one of the standard streams."""
        events = self._poll.poll(0)
        return bool(events) and any(event & select.POLLNVAL for _, event in events)

    def are_lost(self) -> bool:
        """Whether not one byte more may be written: the connection to storage may be somebody else's file."""
        # When a job forks, storage closes its connection first, and the numbers are free for the job to use.
        storage_fds = self._storage.descriptors()
        changed = {fd for fd, file in self._files.items() if identity_of_file(fd) != file}
        if changed & self._vital or any(identity_of_file(fd) is not None for fd in changed & storage_fds):
            return True
        if changed & storage_fds:
            self._storage.close()  # its number may be gone; the next use opens another, if it can be closed
        return bool(changed & self._storage.descriptors())


def descriptors_left() -> tuple[int, float]:
    """How many this process may have, and how many more of them it can surely open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return limit, inf
    try:
        lowest_free = os.dup(0)
    except OSError:
        return limit, 0
    os.close(lowest_free)
    return limit, limit - lowest_free
