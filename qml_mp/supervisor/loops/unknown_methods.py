"""Supervisor: tells of jobs in the served queues whose method this server's program does not know.

They wait for a server that knows them, and nobody would learn why: a warning in the log says so, once
for each method. What another registered server knows is that one's affair.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import timedelta

from qml_mp.storage.protocol import Storage
from qml_mp.supervisor.loops.loop import Tick
from qml_mp.supervisor.registration import ServerRegistration

logger = logging.getLogger(__name__)

_INTERVAL = timedelta(seconds=10)
_AFTER_NEWS = timedelta(seconds=2)
_AMONG = 1000  # of each method in each queue; longer backlogs are told as so many


def unknown_tick(presence: ServerRegistration) -> Tick:
    """Looks at what waits in the served queues."""
    told: set[str] = set()

    def look(storage: Storage) -> None:
        queues, methods = presence.now.queues, presence.now.methods
        waiting: Counter[str] = Counter()
        if methods is not None:
            for line in storage.method_stats(queues, among=_AMONG):
                if line.method not in methods:
                    waiting[line.method] += line.enqueued
        strangers = known_to_nobody(storage, waiting, own_id=presence.id)
        for method in sorted(strangers - told):
            logger.warning(
                "Jobs wait for method %s (now %s), which no server knows. They run once a server is started, "
                "or reloaded, whose app has it; `qml-mp jobs list --method %s` shows them",
                method,
                waiting[method],
                method,
            )
        told.clear()
        told.update(strangers)

    return Tick(name="unknown methods", interval=_INTERVAL, body=look, hasten_after=_AFTER_NEWS)


def known_to_nobody(storage: Storage, methods: Iterable[str], *, own_id: str) -> set[str]:
    """Those of the methods that no other registered server knows; one that has not said may know all."""
    unknown = set(methods)
    if unknown:
        for server in storage.list_servers():
            if server.id != own_id:
                unknown = set() if server.methods is None else unknown.difference(server.methods)
    return unknown
