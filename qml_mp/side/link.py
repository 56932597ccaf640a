"""Beside a server: the pipes from and to its supervisor, as the process at their other end has them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from qml_mp.child.prologue import prctl
from qml_mp.ipc.side import ServerReport, SideArguments, SideWord

_PR_SET_PDEATHSIG = 1
_READ_BYTES = 64 * 1024
_LONGEST_TEXT_CHARS = 4000
"""Of a message as of a traceback, so that a record has room in the pipe."""


class SupervisorLink:
    """Made once, first of all: standard output is the way back from then on, whatever else prints."""

    def __init__(self) -> None:
        self._reading, self._writing = os.dup(0), os.dup(1)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(2, 1)
        os.close(null)
        os.set_blocking(self._reading, True)
        os.set_blocking(self._writing, False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor ends it
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it may print to the terminal from its own group
        self._rest = b""

    def arguments(self) -> SideArguments:
        """The first line. Ends the process when the supervisor is gone before it."""
        arguments = SideArguments.of(self._line())
        if sys.platform == "linux":
            # For a process that hangs; else the end of the pipe is quicker.
            prctl()(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
            if os.getppid() != arguments.supervisor_pid:
                os._exit(0)
        return arguments

    def follow(self, told: Callable[[ServerReport], None] | None = None) -> None:
        """Hear reports in a thread, which ends the process when the supervisor is gone. Who wants to be told
        of them knows the first one when this returns: it comes with the arguments."""
        if told is not None:
            told(ServerReport.of(self._line()))
        threading.Thread(target=self._hear, args=[told], name="supervisor link", daemon=True).start()

    def serves_at(self, url: str) -> None:
        """Say that it serves there."""
        self._say(SideWord(serves_at=url))

    def cannot(self, why: str) -> None:
        """Say why it cannot serve; the process should end then."""
        os.set_blocking(self._writing, True)
        self._say(SideWord(cannot=why))

    def log_handler(self) -> logging.Handler:
        """Has the supervisor log what is logged here, in its own format. What it does not take is lost."""
        return _Forwarded(self._say)

    def _hear(self, told: Callable[[ServerReport], None] | None) -> None:
        while True:
            line = self._line()
            if told is not None:
                told(ServerReport.of(line))

    def _line(self) -> bytes:
        """The next one."""
        while b"\n" not in self._rest:
            self._rest += self._read()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _read(self) -> bytes:
        data = os.read(self._reading, _READ_BYTES)
        if not data:
            os._exit(0)
        return data

    def _say(self, word: SideWord) -> None:
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self._writing, word.line())


class _Forwarded(logging.Handler):
    def __init__(self, say: Callable[[SideWord], None]) -> None:
        super().__init__()
        self._formatter = logging.Formatter()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()[:_LONGEST_TEXT_CHARS]
            trace = self._formatter.formatException(record.exc_info) if record.exc_info else record.exc_text
            trace = trace and trace[-_LONGEST_TEXT_CHARS:]
            self._say(SideWord(log=(record.levelno, record.name, message, trace)))
        except Exception:
            self.handleError(record)
