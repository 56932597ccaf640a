"""Supervisor: jobs whose time has come are made runnable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.refused_jobs import RefusedJobs
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_MOST_PROMOTED = 200  # on SQLite all others wait meanwhile, and 10,000 are through in half a second
_IN_OTHER_HANDS = timedelta(milliseconds=50)


class SchedulerLoop(Loop):
    """Promotes Scheduled and AwaitingRetry jobs, a batch per tick; the next is due when the next job is."""

    name = "scheduler"
    hasten_after = timedelta(milliseconds=20)
    is_punctual = True

    def __init__(self, run: Run, *, interval: timedelta, is_listening: Callable[[], bool]) -> None:
        """`is_listening`: whether storage tells of commits at this moment. Where it does not, what others
        schedule is found by looking, as often as the workers' next jobs are."""
        super().__init__(run, interval=interval)
        self._is_listening = is_listening
        self._refused = RefusedJobs(
            run, failed="The scheduler loop failed", works="The scheduler loop works again"
        )

    def tick(self, storage: Storage) -> timedelta | None:
        left_out = self._refused.left_out
        promoted = storage.promote_due(limit=_MOST_PROMOTED, left_out=left_out)
        self._refused.tell()
        if promoted.count:
            logger.debug("%s due jobs are enqueued", promoted.count)
            self._run.pool.wake_idle(promoted.count)
        next_in = promoted.next_due_in
        if next_in == timedelta() and promoted.count < _MOST_PROMOTED:
            next_in = _IN_OTHER_HANDS  # looks without a pause would be in the way of whoever promotes them
        again_in = None if left_out.next_in is None else max(left_out.next_in, _IN_OTHER_HANDS)
        blind_for = None if self._is_listening() else self._run.config.polling_interval
        return min((each for each in (next_in, again_in, blind_for) if each is not None), default=None)
