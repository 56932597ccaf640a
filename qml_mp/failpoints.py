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
        "claims.committed": "worker: claims are committed, and no ticket of them is written",
        "tickets.written": "worker: the tickets of claims are written, and none of these has begun",
        "claim.committed": "worker: a claim is in hand, and the job has not begun",
        "job.returned": "worker: the job has returned, and nobody else knows what came of it",
        "outcome.recorded": "worker: what came of the job is in shared memory, where its supervisor finds it",
        "giveback.recorded": "worker: it has not begun a claim, and that it goes back is in shared memory",
        "callback.taken": "worker: it is about to call on_failure, which storage has noted as begun",
        "callback.called": "worker: on_failure has returned, and storage does not know yet",
        "finish.before": "worker: outcomes are about to be written to storage",
        "finish.committed": "worker: outcomes are written, and the worker acts on no reply yet",
        "exchange.sent": "worker: outcomes and a claim are sent, and the next job has not begun",
        "exchange.received": "worker: the reply to them is read after that job, and not acted on",
        "fork.before": "supervisor: signals are blocked, and there is no child yet",
        "fork.after": "supervisor: there is a child, and nobody has noted its pid",
        "giveback.taken": "supervisor: it has taken tickets, and storage does not know yet",
        "giveback.committed": "supervisor: these claims are given back, and what has ended is written",
        "acts.taken": "supervisor: it has taken what it is asked, and has not begun",
        "acts.telling": "supervisor: it has begun, and storage does not know what came of it",
        "acts.told": "supervisor: storage knows, and the supervisor has no reply yet",
        "settle.before": "supervisor: a worker is proved dead, and its claims are as it left them",
        "settle.finished": "supervisor: one claim of the dead worker is finished",
        "settle.after": "supervisor: all claims of the dead worker are settled, and it is not forgotten yet",
        "storage.call": "every process: an operation of the storage is about to begin",
        "storage.committed": "every process: it is committed, and the caller has no reply yet",
    }
)


def hit(place: str) -> None:
    """This process has come by a place of `PLACES`."""
