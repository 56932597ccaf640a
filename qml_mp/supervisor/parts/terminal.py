"""Supervisor: tells a hangup of its terminal from a SIGHUP that asks for new workers."""

from __future__ import annotations

import errno
import os
import signal

_TERMINAL = "/dev/tty"


class Terminal:
    """The terminal that the server was started from, if it has one and should end with it.

    Made before handlers are set: a server whose SIGHUP was ignored then (as by `nohup`) was meant
    to outlive its terminal.
    """

    def __init__(self) -> None:
        self._is_bound_to_it = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()
        self._is_in_doubt = False

    def suspect(self) -> None:
        """A SIGHUP came: from now on it may be gone. (The kernel sends it before it takes it away.)"""
        self._is_in_doubt = True

    @property
    def is_gone(self) -> bool:
        """Whether the server had a terminal, and has lost it."""
        return self._is_bound_to_it and self._is_in_doubt and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE)  # nothing is known then
    return True
