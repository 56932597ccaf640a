"""Worker and supervisor: the exit codes by which a worker says why it left."""

from __future__ import annotations

from enum import IntEnum


class WorkerExit(IntEnum):
    """Codes above 1, so that a job's own `os._exit(0)` or `(1)` is never taken for an orderly leave."""

    CANNOT_BOOT = 3
    """The app does not import, or another error before the first job; the slot's text says which."""
    LEFT = 80
    """As told, or because the supervisor is gone; no job was in hand."""
    RECYCLED = 81
    """Its number of jobs or its memory is used up; no job was in hand."""
    BROKEN = 82
    """An error of qml-mp itself; a job may be in hand, and counts as crashed."""
