"""Supervisor, worker: lines on standard error that never make their writer wait.

Standard error can be a pipe that nobody reads, a terminal that was stopped, or a service manager's
socket. A supervisor that waits for any of them looks after no worker, so a line that is not taken
at once is dropped, and the next one that is taken says how many were.

Names and messages in a record are other people's text. Whatever they hold, only the first line of a
record stands at the margin: lines that continue it are marked, and no character steers a terminal.

A terminal that wants no output of what runs in the background (`stty tostop`) sends SIGTTOU for it. That says
something else to a supervisor, and where it is handled the write is tried again for ever. The kernel lets a
thread write that blocks the signal.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from qml_mp.printable import printable_lines

_STDERR = 2
_WHOLE_BYTES = 4096  # what a pipe that is ready for writing takes without waiting (PIPE_BUF)
_OWN_DESCRIPTION = "/proc/self/fd/2"
_CONTINUED = "\n  | "
_NOT_READ = "nobody read them"
_OF_THE_FILE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors that tell of a disk, not of a reader."""
_LOOK_EVERY_S = 0.01  # the lines of short jobs come faster; only a job can put another file in its place


class StderrHandler(logging.Handler):
    """Writes to descriptor 2 as it is at that moment. Holds no descriptor, so that none crosses a
    fork, and none can be closed or replaced by a job."""

    def __init__(self) -> None:
        super().__init__()
        self._dropped = 0
        self._why = _NOT_READ
        """Why they were dropped, for people."""
        self._is_within_a_line = False
        """Whether of the last one that was dropped the beginning was taken."""
        # Without a standard error its number is the first to be given to another file.
        self._mute = sys.__stderr__ is None
        self._may_ask_not_to_wait = hasattr(os, "RWF_NOWAIT")
        """Whether the kernel takes a write that must not wait, as it does of pipes and sockets."""
        self._is_file_until = 0.0
        """Until then it is taken to be the regular file that it was: no write to one waits for a reader."""

    def emit(self, record: logging.LogRecord) -> None:
        if self._mute:
            return
        try:
            text = self.format(record)
            line = text if text.isprintable() else _CONTINUED.join(printable_lines(text))
            if self._dropped:
                line = f"{self.format(self._of_the_dropped())}\n{line}"
            data = (line + "\n").encode(errors="backslashreplace")
        except Exception:
            self.handleError(record)
            return
        if self._is_within_a_line:
            data = b"\n" + data
        taken = self._write(data)
        self._dropped = 0 if taken == len(data) else self._dropped + 1
        if taken:
            self._is_within_a_line = data[taken - 1 : taken] != b"\n"

    def _of_the_dropped(self) -> logging.LogRecord:
        text, values = "(%s lines were dropped here, because %s)", (self._dropped, self._why)
        return logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, values, None)

    def _write(self, data: bytes) -> int:
        """How many bytes of it were taken."""
        if not self._dropped:
            self._why = _NOT_READ
        taken = 0
        if self._may_ask_not_to_wait:
            try:
                taken = os.pwritev(_STDERR, (data,), -1, os.RWF_NOWAIT)  # a third of the way below
            except OSError as error:
                self._may_ask_not_to_wait = error.errno in (errno.EAGAIN, errno.EPIPE)
        try:
            # A disk that is nearly full takes a part, and says at the next write that it is full.
            while taken < len(data) and (more := self._write_by_kind(data[taken:])):
                taken += more
        except OSError as error:  # full, closed, or its reader or terminal is gone
            if error.errno in _OF_THE_FILE:
                self._why = f"they could not be written ({error.strerror})"
        return taken

    def _write_by_kind(self, data: bytes) -> int:
        now = time.monotonic()
        if now >= self._is_file_until:
            mode = os.fstat(_STDERR).st_mode
            if stat.S_ISSOCK(mode):
                return _send(data)
            if not stat.S_ISREG(mode):
                write = _write_own if sys.platform == "linux" else _write_if_ready
                with _in_the_background_too() if stat.S_ISCHR(mode) else nullcontext():
                    return write(data)
            self._is_file_until = now + _LOOK_EVERY_S
        return os.write(_STDERR, data)


@contextmanager
def _in_the_background_too() -> Iterator[None]:
    """One SIGTTOU that a person sends meanwhile comes afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTTOU,))
    try:
        yield
    finally:
        if signal.SIGTTOU not in before:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTTOU,))


def _send(data: bytes) -> int:
    with socket.socket(fileno=os.dup(_STDERR)) as connection:
        return connection.send(data, socket.MSG_DONTWAIT)


def _write_own(data: bytes) -> int:
    """Through an open file description of our own: the one behind descriptor 2 is shared with
    whoever started us, who does not expect that it stops blocking."""
    try:
        fd = os.open(_OWN_DESCRIPTION, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return _write_if_ready(data)  # no /proc, or it is another user's
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def _write_if_ready(data: bytes) -> int:
    poll = select.poll()
    poll.register(_STDERR, select.POLLOUT)
    if not any(event & select.POLLOUT for _, event in poll.poll(0)):
        return 0
    return os.write(_STDERR, data[:_WHOLE_BYTES])
