"""Anywhere: named places in the code, at which tests make a process die, stop or fail.

Nothing happens at them in a program, and no setting can change that: tests put a function of their own
in place of `hit`, so callers write `failpoints.hit(…)` and never import the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PLACES: Mapping[str, str] = MappingProxyType(
    {
        "worker.begin": "worker: the first line after the prologue",
        "supervisor.begin": "supervisor: the first line of its run",
        "boot": "worker: the app is loaded, and nobody knows yet that the worker is ready",
        "claim.committed": "worker: a claim is in hand, and the job has not begun",
        "finish.before": "worker: the job has returned, and nothing of it is written",
        "finish.committed": "worker: the outcome is written, and the worker acts on no reply yet",
        "fork.before": "supervisor: signals are blocked, and there is no child yet",
        "fork.after": "supervisor: there is a child, and nobody has noted its pid",
        "settle.before": "supervisor: a worker is proved dead, and its claims are as it left them",
        "settle.finished": "supervisor: one claim of the dead worker is finished",
        "settle.after": "supervisor: all claims of the dead worker are settled, and it is not forgotten yet",
        "storage.call": "every process: an operation of the storage is about to begin",
        "storage.committed": "every process: it is committed, and the caller has no reply yet",
    }
)


def hit(place: str) -> None:
    """This process has come by a place of `PLACES`."""
