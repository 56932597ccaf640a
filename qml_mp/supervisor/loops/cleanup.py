"""Supervisor: deletes what is too old: final jobs past their time to live, and what else is kept a while."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

from qml_mp.settings import ServerConfig
from qml_mp.storage.left_out import LeftOut
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.refused_jobs import RefusedJobs
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_FEWEST_DELETED = 25  # a millisecond or two, in which others wait on SQLite
_MOST_DELETED = 250  # when they wait ten times as long; they are in a hurry then
_MOST_FORGOTTEN = 100
_MOST_LOOKED_AT = 250  # a few milliseconds, in which nobody waits
_SHARE_OF_OTHERS = 4  # times as long as a batch took, nothing is deleted
_MOST_KEPT = 10_000  # a table of the user's may refer to each of its jobs
_LONGEST_KEPT = timedelta(hours=1)


class CleanupLoop(Loop):
    """Deletes final jobs past their time to live, and what else is too old. Many jobs are deleted in small
    batches, with pauses that leave most of the storage's time to those who claim; in larger ones while the
    workers here end more jobs than that, since as many expire one day.

    The rest is seen to in rounds: once no job is left to delete, and in each interval however many are left.
    An error ends the tick, and the next one begins with what comes behind, so that nothing that fails keeps
    the others from their time.
    """

    name = "cleanup"

    def __init__(self, run: Run, *, interval: timedelta) -> None:
        super().__init__(run, interval=interval)
        self._interval_s = interval.total_seconds()
        self._ended = 0
        """How many jobs had ended here when the newest batch began."""
        self._most = _FEWEST_DELETED
        """Of jobs, in this tick."""
        self._steps: tuple[Callable[[Storage], bool], ...] = (
            self._delete_jobs,
            self._forget_history,
            self._delete_locks,
            self._forget_failure_callbacks,
            self._forget_lost_attempts,
            self._delete_acts,
        )
        """Each deletes a batch of its own; whether there may be more of it."""
        self._left: set[Callable[[Storage], bool]] = set()
        """Those of the round that have not come to their end."""
        self._begin_with = 0
        """The place of the step behind that with which the tick before has failed."""
        self._round_at = run.clock.monotonic() + self._interval_s
        """When the next round begins, however many jobs are left."""
        self._looked_at: str | None = None
        """How far the look through failure callbacks has come."""
        self._refused = RefusedJobs(
            run,
            failed="The cleanup loop failed",
            works="The cleanup loop works again",
            left_out=LeftOut(run.clock, longest=_LONGEST_KEPT, most=_MOST_KEPT),
        )
        # Where none is kept, what others have written goes by the rule of most.
        self._history_ttl = run.config.history_ttl or ServerConfig().history_ttl

    def tick(self, storage: Storage) -> timedelta | None:
        clock = self._run.clock
        began, self._most = clock.monotonic(), self._next_batch()
        self._left.add(self._delete_jobs)
        if began >= self._round_at:
            self._begin_round()
        number = len(self._steps)
        for place in range(self._begin_with, self._begin_with + number):
            step = self._steps[place % number]
            self._begin_with = (place + 1) % number  # should it fail
            if step in self._left and not step(storage):
                self._left.discard(step)
        self._begin_with = 0
        if not self._left:
            return None
        share = 1 if self._most == _MOST_DELETED else _SHARE_OF_OTHERS
        return share * timedelta(seconds=clock.monotonic() - began)

    def _next_batch(self) -> int:
        """How many jobs to delete now: of those that are as many as a few, half as many again as have ended
        here since the last time."""
        totals, before = self._run.pool.totals, self._ended
        totals.look()
        self._ended = totals.ended
        return min(max(_FEWEST_DELETED, 3 * (self._ended - before) // 2), _MOST_DELETED)

    def _begin_round(self) -> None:
        self._left.update(self._steps)
        self._round_at = self._run.clock.monotonic() + self._interval_s

    def _delete_jobs(self, storage: Storage) -> bool:
        left_out = self._refused.left_out
        deleted = storage.delete_expired_jobs(limit=self._most, left_out=left_out)
        _tell("expired jobs", deleted)
        has_more = self._refused.tell() or deleted >= self._most or left_out.next_in == timedelta()
        if not has_more and self._left == {self._delete_jobs}:
            self._begin_round()
        return has_more

    def _forget_history(self, storage: Storage) -> bool:
        return storage.forget_history(older_than=self._history_ttl, limit=_MOST_FORGOTTEN) == _MOST_FORGOTTEN

    def _delete_locks(self, storage: Storage) -> bool:
        locks = storage.delete_expired_locks(limit=_MOST_FORGOTTEN)
        _tell("expired locks", locks)
        return locks == _MOST_FORGOTTEN

    def _forget_failure_callbacks(self, storage: Storage) -> bool:
        """Some at a time, since all of them have to be looked at; more while there are any to delete."""
        looked = storage.forget_failure_callbacks(limit=_MOST_LOOKED_AT, after=self._looked_at)
        _tell("failure callbacks of jobs that are gone", looked.deleted)
        self._looked_at = looked.rest
        return looked.deleted > 0 and looked.rest is not None

    def _forget_lost_attempts(self, storage: Storage) -> bool:
        return storage.forget_lost_attempts(limit=_MOST_FORGOTTEN) >= _MOST_FORGOTTEN

    def _delete_acts(self, storage: Storage) -> bool:
        acts = storage.delete_old_acts(kept_for=self._run.config.audit_ttl, limit=_MOST_FORGOTTEN)
        _tell("entries of the audit", acts)
        return acts == _MOST_FORGOTTEN


def _tell(what: str, deleted: int) -> None:
    if deleted:
        logger.debug("%s %s are deleted", deleted, what)
