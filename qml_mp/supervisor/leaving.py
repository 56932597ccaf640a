"""Supervisor: the end of a run in storage: settle the last dead workers, and leave the registry.

With a slow storage there is time for one reply or none. So one statement removes everything when no
claim is left, which is the rule, and what cannot be done in time is left as it is: the next server
finds it.
"""

from __future__ import annotations

import logging
import time

from qml_mp.errors import StorageError
from qml_mp.storage.protocol import Retention, Storage
from qml_mp.supervisor.loops.settlement import Chores
from qml_mp.supervisor.wait import wait_for

logger = logging.getLogger(__name__)

_PAUSE_S = 0.02


def leave_storage(
    storage: Storage, server_id: str, *, chores: Chores, retention: Retention, deadline: float
) -> None:
    """Try until it is done or the monotonic `deadline` has passed. All workers are dead."""
    trouble: StorageError | None = None
    while True:
        try:
            if _leave(storage, server_id, chores, retention):
                return
        except StorageError as error:
            trouble = error
        if time.monotonic() + _PAUSE_S >= deadline:
            break
        wait_for([], until=time.monotonic() + _PAUSE_S)
    if chores.unsettled:
        logger.error("What %s dead workers still held is left to the next server", chores.unsettled)
    logger.warning(
        "Could not leave the registry, where this server stands until the next one on this machine finds it "
        "dead: %s",
        trouble or "not all could be settled",
    )


def _leave(storage: Storage, server_id: str, chores: Chores, retention: Retention) -> bool:
    if storage.deregister_idle_server(server_id):
        return True
    chores.spares_empty_handed = False  # a claim whose reply was lost may be anybody's
    chores.settle_due(storage, wake=lambda: None)
    if chores.unsettled:
        return False
    storage.reclaim_server(server_id, silent_for=None, retention=retention)
    return True
