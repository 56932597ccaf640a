"""Supervisor: tells of jobs in the served queues whose method this server's program does not know.

They wait for a server that knows them, and nobody would learn why: a warning in the log says so, once
for each method. What another registered server knows is that one's affair.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_AMONG = 1000  # of each method in each queue; longer backlogs are told as so many


class UnknownMethodsLoop(Loop):
    """Looks at what waits in the served queues."""

    name = "unknown methods"
    interval = timedelta(seconds=10)
    hasten_after = timedelta(seconds=2)
    looks_at_jobs = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._told: set[str] = set()

    def tick(self, storage: Storage) -> None:
        says = self._run.registration.says
        waiting: Counter[str] = Counter()
        if says.methods is not None:
            for line in storage.method_stats(says.queues, among=_AMONG):
                if line.method not in says.methods:
                    waiting[line.method] += line.enqueued
        unknown = known_to_nobody(storage, waiting, own_id=self._run.registration.id)
        for method in sorted(unknown - self._told):
            logger.warning(
                "Jobs wait for method %s (now %s), which no server knows. They run once a server is started, "
                "or reloaded, whose app has it; `qml-mp jobs list --method %s` shows them",
                method,
                waiting[method],
                method,
            )
        self._told = unknown


def known_to_nobody(storage: Storage, methods: Iterable[str], *, own_id: str) -> set[str]:
    """Those of the methods that no other registered server knows; one that has not said may know all."""
    unknown = set(methods)
    if unknown:
        for server in storage.list_servers():
            if server.id != own_id:
                unknown = set() if server.methods is None else unknown.difference(server.methods)
    return unknown
