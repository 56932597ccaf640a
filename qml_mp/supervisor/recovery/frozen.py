"""Supervisor: servers of this very host that live and say nothing: stopped, swapped out, in a debugger.

Their jobs must run elsewhere, and their workers may go on with them at any moment. So these are ended first:
asked to leave, which writes what had ended in them, and killed a moment later. The supervisor itself is left
alone. When it goes on, it finds itself declared dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta

from qml_mp import host
from qml_mp.core.server_info import ServerInfo
from qml_mp.storage.store import Storage
from qml_mp.supervisor.recovery.sweep import LONGEST_PAUSE, TOLD_AFTER, all_proved_dead, warn_of_survivors
from qml_mp.supervisor.workers.fork import ask_stranger
from qml_mp.units import doubled

logger = logging.getLogger(__name__)

_LEAVE_WITHIN = timedelta(seconds=0.3)
"""A worker that runs, and has no job in hand, has left by then."""
_ASK_AGAIN = timedelta(seconds=0.05)
_FORGET_AFTER_S = 10.0
"""Without a word about a server for so long, it has come back since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    began: float
    newest: float
    kills: int = 0


class FrozenPeers:
    """Those whose workers this server is about to end."""

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}

    def end_workers(self, storage: Storage, peer: ServerInfo) -> Collection[str] | timedelta:
        """The ids of all its workers, once they are proved dead; else how long to wait before the next call.

        The peer has been silent for long enough, by the caller's judgement, at each call; and its process is
        seen from here, so its workers are too.
        """
        workers = [worker for worker in storage.list_workers() if worker.server_id == peer.id]
        now = time.monotonic()
        asked = self._asked.get(peer.id)
        if asked is None or now - asked.newest > _FORGET_AFTER_S:
            logger.warning(
                "Server %s (pid %s) of this host is there and sends no heartbeats: its workers are ended, "
                "and others run its jobs",
                peer.id,
                peer.process.pid,
            )
            asked = _Asked(began=now, newest=now)
            for worker in workers:
                ask_stranger(worker.process)
        self._asked[peer.id] = asked = replace(asked, newest=now)
        left = _LEAVE_WITHIN.total_seconds() - (now - asked.began)
        if left > 0 and any(host.is_alive(each.process, is_local=True) is not False for each in workers):
            return min(_ASK_AGAIN, timedelta(seconds=left))
        if not all_proved_dead([worker.process for worker in workers], is_told=asked.kills > 0):
            self._asked[peer.id] = replace(asked, kills=asked.kills + 1)
            if asked.kills + 1 == TOLD_AFTER:
                warn_of_survivors(peer)
            return doubled(_ASK_AGAIN, asked.kills, longest=LONGEST_PAUSE)
        del self._asked[peer.id]
        return {worker.id for worker in workers}
