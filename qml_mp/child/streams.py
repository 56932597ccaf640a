"""Worker: its standard streams, as they were when it was ready."""

from __future__ import annotations

import fcntl
import os
import sys
from typing import Any

from qml_mp.host import identity_of_file
from qml_mp.standard_streams import STREAMS, occupy_standard_streams


class StandardStreams:
    """Made when the worker is ready: an app may have redirected them for good at its import."""

    def __init__(self) -> None:
        occupy_standard_streams()
        self._files = {fd: identity_of_file(fd) for fd in STREAMS}
        self._spares = {fd: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(STREAMS)) for fd in STREAMS}
        self._in, self._out, self._err = sys.stdin, sys.stdout, sys.stderr
        self._open = [stream for stream in (self._in, self._out, self._err) if not _is_closed(stream)]

    @property
    def spares(self) -> frozenset[int]:
        """Copies to put back. Nobody but a job closes these."""
        return frozenset(self._spares.values())

    def look_unchanged(self) -> bool:
        """Whether `print` writes and `input` reads where it did, as far as no system call is needed to tell.
        Raises `AttributeError` when a job has deleted one."""
        is_same = sys.stdin is self._in and sys.stdout is self._out and sys.stderr is self._err
        return is_same and not self._one_is_closed()

    def are_unchanged(self) -> bool:
        """Whether the three descriptors are the files that they were."""
        return all(identity_of_file(fd) == file for fd, file in self._files.items())

    def put_back(self) -> None:
        """Have all as it was; the spares must be what they were. Raises `ValueError` when a job has closed
        what `print` writes to, or `input` reads."""
        for fd, file in self._files.items():
            if identity_of_file(fd) != file:
                os.dup2(self._spares[fd], fd)
        sys.stdin, sys.stdout, sys.stderr = self._in, self._out, self._err
        if self._one_is_closed():
            raise ValueError("sys.stdin, sys.stdout or sys.stderr is closed")

    def _one_is_closed(self) -> bool:
        for stream in self._open:  # noqa: SIM110  # asked after every job, and `any` takes twice as long
            if _is_closed(stream):
                return True
        return False


def _is_closed(stream: Any) -> bool:
    """None is not: nothing is printed then. Nor is an object of the app that has no such attribute: to print,
    `write` is enough."""
    try:
        return bool(stream.closed)
    except AttributeError:
        return False
    except ValueError:  # its buffer was detached
        return True
