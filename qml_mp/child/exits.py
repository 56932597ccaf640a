"""Worker and supervisor: the exit codes by which a worker says why it left.

A job can leave with any of them, so a code proves nothing without what the slot says: the supervisor
believes `LEFT` and `RECYCLED` from a worker that said that it is leaving without a job, and takes from
the slot alone whether a worker could not boot.
"""

from __future__ import annotations

from enum import IntEnum


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
