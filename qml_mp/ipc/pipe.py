"""Both ends of the pipe: opening, writing without ever waiting, reading with a bound.

The supervisor alone holds the writing end; the end of file on the reading end therefore says
that the supervisor is gone. Descriptors are plain numbers: nothing here closes one by itself.
"""

from __future__ import annotations

import os
import select

from qml_mp.ipc.messages import MESSAGE_BYTES, Message, decode
from qml_mp.standard_streams import occupy_standard_streams

_READ_BYTES = MESSAGE_BYTES * 128


def open_pipe() -> tuple[int, int]:
    """A pipe (reading end, writing end), neither of which blocks or survives an exec."""
    occupy_standard_streams()
    return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _portable_pipe()


def send(fd: int, message: Message) -> bool:
    """Write the message; False when the pipe is full (the reader has plenty to read) or closed."""
    try:
        return os.write(fd, message.encode()) == MESSAGE_BYTES
    except (BlockingIOError, BrokenPipeError):
        return False


class PipeReader:
    """The worker's end. `eof` is True once the supervisor is gone, and stays so."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.eof = False
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def read(self) -> list[Message]:
        """What has arrived, without waiting. One system call when nothing has."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            self.eof = True
        return decode(data)

    def wait(self, timeout_s: float) -> None:
        """Return when something can be read, the supervisor is gone, or the time is over."""
        if not self.eof:
            self._poll.poll(max(0, timeout_s) * 1000)


def _portable_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing
