"""Supervisor: signals become bytes in a pipe, handled later in the loop, never in the handler."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType

from qml_mp.ipc.pipe import open_pipe

HANDLED = (
    signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU,
    signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD,
)  # fmt: skip


class SignalInbox:
    """`with`: the supervisor's signals are queued here; afterwards the handlers are as they were.

    With `ends_process` nothing comes afterwards: what is signalled then is ignored, so that the
    last of many signals does not end the process with another status than its own.
    In a thread that is not the main one (or where handlers cannot be set) nothing is installed.
    """

    def __init__(self, *, ends_process: bool = False) -> None:
        self._ends_process = ends_process
        self._reading, self._writing = -1, -1
        self._before: dict[int, object] = {}

    def __enter__(self) -> SignalInbox:
        self._reading, self._writing = open_pipe()
        if threading.current_thread() is threading.main_thread():
            for number in HANDLED:
                self._before[number] = signal.signal(number, self._put)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            if self._ends_process and number != signal.SIGCHLD:
                signal.signal(number, signal.SIG_IGN)
                continue
            # None: a handler that was not set from Python, which cannot be set back.
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)  # type: ignore[arg-type]
        os.close(self._reading)
        os.close(self._writing)

    @property
    def fds(self) -> tuple[int, int]:
        """Both ends; the first is readable when a signal has come."""
        return self._reading, self._writing

    def take(self) -> list[signal.Signals]:
        """The signals since the last call, in order."""
        try:
            return [signal.Signals(number) for number in os.read(self._reading, 4096)]
        except BlockingIOError:
            return []

    def _put(self, number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):  # 64 KiB of unhandled signals: one more says nothing new
            os.write(self._writing, bytes([number]))
