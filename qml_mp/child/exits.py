"""Worker and supervisor: how a worker leaves, and the exit codes by which it says why.

A job can leave with any of them, so a code proves nothing without what the slot says: the supervisor
believes `LEFT` and `RECYCLED` from a worker that said that it is leaving without a job, and takes from
the slot alone whether a worker could not boot.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from enum import IntEnum
from types import FrameType
from typing import NoReturn

from qml_mp import host
from qml_mp.core.outcome import Failure, Outcome, Retry, Success

_FLUSHING_S = 0.5


class WorkerExit(IntEnum):
    """For people and service managers above all; see above for what the supervisor reads in them."""

    CANNOT_BOOT = 3
    """The app does not import, or another error before the first job; the slot's text says which."""
    LEFT = 80
    """As told, or because the supervisor is gone; no job was in hand."""
    RECYCLED = 81
    """Its number of jobs or its memory is used up; no job was in hand."""
    BROKEN = 82
    """An error of qml-mp itself; a job may be in hand, and counts as crashed."""


def exit_with(code: int) -> NoReturn:
    """End the process now. Standard streams are flushed, unless nobody reads them; nothing else that was
    inherited from the parent is run."""
    try:
        _flush()
    finally:
        os._exit(code)


def end_copy(outcome: Outcome | None) -> NoReturn:
    """End a copy of this worker that the job or a hook has forked, maybe in C, and has let come to the end of
    itself. This came of it there (None: nothing that is known), and whoever has forked it is told as by any
    Python program: by the traceback and the exit code 1, or by the code that `sys.exit` was given."""
    code = 0 if outcome is None or isinstance(outcome, Success) else 1
    if isinstance(outcome, (Failure, Retry)):
        said = outcome.error.traceback or f"{outcome.error.type}: {outcome.error.message}"
        if outcome.error.type == SystemExit.__name__:
            code, said = _of_system_exit(outcome.error.message)
        if said:
            # There may be no stream, or none that takes text.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                print(said.rstrip("\n"), file=sys.stderr)
    exit_with(code)


def _of_system_exit(argument: str) -> tuple[int, str]:
    """The code with which Python ends then, and what it says."""
    if argument in ("", "None"):
        return 0, ""
    try:
        return int(argument) & 0xFF, ""
    except ValueError:
        return 1, argument


def end_group() -> None:
    """Kill this worker's group when anything is left in it: the supervisor is gone and cannot do it.

    By the worker's own number: a job may have moved this process to another group, even the supervisor's.
    """
    if host.shares_its_group(os.getpid()) is not False:
        with contextlib.suppress(OSError):
            _flush()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpid(), signal.SIGKILL)


def _flush() -> None:
    try:
        signal.signal(signal.SIGALRM, _stop_flushing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        for stream in (sys.stdout, sys.stderr):
            signal.setitimer(signal.ITIMER_REAL, _FLUSHING_S)
            # Its reader is gone or does not read, or a job has closed or replaced it.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop_flushing(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError  # an OSError
