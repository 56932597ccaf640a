"""Worker: descriptors 0 to 2 and what `print` writes to, put back after a job that closed or replaced them.

Left closed, their numbers would be given to the next files of the process, the connection to storage among
them, and a later job's `print` would be sent to the database.
"""

from __future__ import annotations

import fcntl
import os
import sys

from qml_mp.standard_streams import STREAMS, occupy_standard_streams

_File = tuple[int, int] | None


class StandardStreams:
    """Made when the worker is ready: an app may have redirected them for good at its import."""

    def __init__(self) -> None:
        occupy_standard_streams()
        self._files = {fd: file_of(fd) for fd in STREAMS}
        self._spares = {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(STREAMS)) for fd in STREAMS}
        self._out, self._err = sys.stdout, sys.stderr

    @property
    def spares(self) -> frozenset[int]:
        """Copies to put back. Nobody but a job closes these."""
        return frozenset(self._spares.values())

    def put_back(self) -> None:
        """Have all as it was; the spares must be what they were. Raises `ValueError` when a job has closed
        what `print` writes to."""
        for fd, file in self._files.items():
            if file_of(fd) != file:
                os.dup2(self._spares[fd], fd)
        sys.stdout, sys.stderr = self._out, self._err
        if any(stream is not None and stream.closed for stream in (self._out, self._err)):
            raise ValueError("sys.stdout or sys.stderr is closed")


def file_of(fd: int) -> _File:
    """What tells the open file from any other; None: the descriptor is closed."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
