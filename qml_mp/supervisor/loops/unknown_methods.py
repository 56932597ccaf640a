"""Supervisor: tells of jobs in the served queues whose method this server's program does not know.

They wait for a server that knows them, and nobody would learn why: a warning in the log says so, once
for each method. What another registered server knows is that one's affair. Where a setting says so, they end
failed when nobody has known their method for long.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta

from qml_mp.core.server_info import ServerInfo
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_MORE_IN = timedelta(milliseconds=100)  # what is failed at a time is bounded
_AMONG = 1000  # of each method in each queue; longer backlogs are told as so many or more


class UnknownMethodsLoop(Loop):
    """Looks at what waits in the served queues."""

    name = "unknown methods"
    interval = timedelta(seconds=10)
    hasten_after = timedelta(seconds=2)
    looks_at_jobs = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._unknown_since: dict[str, float] = {}
        """By the monotonic clock, without a gap up to the last tick."""

    def tick(self, storage: Storage) -> timedelta | None:
        says = self._run.registration.says
        waiting: Counter[str] = Counter()
        cut: set[str] = set()
        if says.methods is not None:
            for line in storage.method_stats(says.queues, among=_AMONG):
                if line.method not in says.methods:
                    waiting[line.method] += line.enqueued
                    if line.enqueued >= _AMONG:
                        cut.add(line.method)
        unknown = known_to_nobody(storage, waiting, own_id=self._run.registration.id)
        for method in sorted(unknown - self._unknown_since.keys()):
            logger.warning(
                "Jobs wait for method %s (now %s), which no server knows. They run once a server is started, "
                "or reloaded, whose app has it; `qml-mp jobs list --method %s` shows them",
                method,
                f"{waiting[method]} or more" if method in cut else waiting[method],
                method,
            )
        now = self._run.clock.monotonic()
        self._unknown_since = {method: self._unknown_since.get(method, now) for method in unknown}
        timeout = self._run.config.unknown_method_timeout
        return None if timeout is None else self._fail_overdue(storage, timeout, now)

    def _fail_overdue(self, storage: Storage, timeout: timedelta, now: float) -> timedelta | None:
        """Fail jobs that have waited for so long while nobody knew their method. Their age alone proves
        nothing: the server that knows it may be away for a moment, with a long backlog.

        Returns in how long there may be more.
        """
        next_in: list[timedelta] = []
        for method, since in sorted(self._unknown_since.items()):
            left = timeout - timedelta(seconds=now - since)
            if left > timedelta():
                next_in.append(left)
                continue
            failed = storage.fail_unknown(
                method,
                queues=self._run.registration.says.queues,
                waiting_since=storage.now() - timeout,
                retention=self._run.retention,
            )
            if failed:
                logger.error(
                    "%s jobs of method %s are failed: no server has known it for %s (unknown_method_timeout)",
                    len(failed),
                    method,
                    format_duration(timeout),
                )
                next_in.append(_MORE_IN)
        return min(next_in, default=None)


def known_to_nobody(
    storage: Storage,
    methods: Iterable[str],
    *,
    own_id: str,
    knows: Callable[[ServerInfo, str], bool] = ServerInfo.knows,
) -> set[str]:
    """Those of the methods that no other registered server knows; one that has not said may know all."""
    unknown = set(methods)
    if unknown:
        for server in storage.list_servers():
            if server.id != own_id:
                unknown = {method for method in unknown if not knows(server, method)}
    return unknown
