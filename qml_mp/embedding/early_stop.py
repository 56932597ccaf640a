"""Supervisor: a stop that is asked for before the server has its own handlers, where it is the first process
of a container."""

from __future__ import annotations

import os
import signal
from types import FrameType

_FIRST = 1
_OF_A_STOP = (signal.SIGTERM, signal.SIGQUIT)  # Python itself handles SIGINT


def stop_early_when_told() -> None:
    """From here on until the server handles its signals, a stop ends this process with 0: no job is in hand.

    The kernel drops what process 1 of a container has no handler for, and the server would start as if nobody
    had told it to stop. Any other process is ended by the signal itself, and is left as it is.
    """
    if os.getpid() != _FIRST:
        return
    for number in _OF_A_STOP:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    """At once: an exception could be caught by the app that is being imported. The kernel ends what process 1
    has started."""
    os._exit(0)
