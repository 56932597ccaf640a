"""Supervisor: dead workers: collected, and their claims finished, until storage has all of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from qml_mp.errors import ConfigurationError, StorageError, StorageUnreachable
from qml_mp.events.retrying import Retrying
from qml_mp.processing.cancel import CancelReason
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import NEVER, Loop
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.recovery.counting import Counting
from qml_mp.supervisor.recovery.settle import settle
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.death import Death

logger = logging.getLogger(__name__)

_PATIENCE_S = 0.2  # of one tick: other loops want their turn, as that of heartbeats does


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsettled:
    """A dead worker, and how the tries to settle it went."""

    death: Death
    tries: Retrying
    counting: Counting


class SettleLoop(Loop):
    """Settles dead workers, oldest first. One that cannot be settled is tried again by itself, and holds
    up no other. When the server stops, a worker that left without a claim needs no settling: one statement
    removes the whole server."""

    name = "settle"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._unsettled: list[_Unsettled] = []
        self._settles_orderly_too = False

    @property
    def unsettled_ids(self) -> set[str]:
        return {one.death.worker_id for one in self._unsettled}

    def remember(self, death: Death) -> None:
        """A worker died: settle what it held."""
        tries = self._run.retrying(f"Dead worker {death.worker_id} is settled now")
        counting = Counting(death, self._run.pool.totals)
        self._unsettled.append(_Unsettled(death=death, tries=tries, counting=counting))

    def settle_orderly_too(self) -> None:
        """From now on those too that left in order: one of them may hold a claim whose reply was lost."""
        self._settles_orderly_too = True

    def count_rest(self, storage: Storage) -> None:
        """All claims of this server are ended: count what dead workers have ended and not counted, as far as
        storage tells."""
        for one in self._unsettled:
            try:
                one.counting.count_rest(storage, held=())
            except StorageError as error:
                logger.warning("What dead worker %s has ended is not counted: %s", one.death.worker_id, error)

    @property
    def count(self) -> int:
        """How many dead workers have to be settled."""
        return len(self._to_settle())

    @property
    def _part_failing_since(self) -> float | None:
        since = (one.tries.failing_since for one in self._to_settle())
        return min((instant for instant in since if instant is not None), default=None)

    def due_at(self) -> float:
        return min((one.tries.not_before for one in self._to_settle()), default=NEVER)

    def tick(self, storage: Storage) -> None:
        """Settle those that are not in a pause after a failure, as many as there is time for; all, once the
        server leaves, as no other loop waits then. Raises `StorageUnreachable` alone."""
        began = self._run.clock.monotonic()
        # Those that were refused come last, in turn, or they would take the time of the others each time.
        for one in sorted(self._to_settle(), key=lambda one: one.tries.not_before):
            if self._run.clock.monotonic() < one.tries.not_before:
                return
            self._settle(storage, one)
            took_long = self._run.clock.monotonic() - began > _PATIENCE_S
            # A refusal may be that of a lock that was waited for.
            if took_long and (one.tries.is_failing or not self._settles_orderly_too):
                return

    def _to_settle(self) -> list[_Unsettled]:
        spares = self._run.stop.has_begun and not self._settles_orderly_too
        return [one for one in self._unsettled if not (spares and one.death.was_orderly)]

    def _settle(self, storage: Storage, one: _Unsettled) -> None:
        try:
            claims = settle(
                storage,
                one.death,
                max_crashes=self._run.config.max_crashes,
                retention=self._run.retention,
                events=self._run.events,
                counting=one.counting,
            )
        except StorageUnreachable:
            raise
        except Exception as error:
            what = f"Settling dead worker {one.death.worker_id} failed"
            one.tries.failed(what, error, now=self._run.clock.monotonic())
            return
        one.tries.worked()
        self._run.stop.renew_leaving()
        self._unsettled.remove(one)
        if claims:
            self._run.pool.wake_idle()


class Reaper(Part):
    """A death is work for the settle loop, or the end of a server whose workers cannot boot."""

    def __init__(self, run: Run, *, settling: SettleLoop) -> None:
        self._run = run
        self._settling = settling
        self.killed_jobs = False
        """Whether a job was killed because the server stops."""

    def turn(self) -> None:
        deaths = self._run.pool.reap(
            stopping=self._run.stop.has_begun,
            may_count_as_dead=self._run.registration.may_have_counted_as_dead,
        )
        for death in deaths:
            self._settling.remember(death)
            if death.killed_for is CancelReason.SHUTDOWN and death.was_busy and not death.was_in_hook:
                self.killed_jobs = True
        failure = self._run.pool.boots.failure()
        if failure is not None and self._run.stop.error is None:
            is_of_memory = isinstance(failure, ConfigurationError)
            why = "its memory limit cannot be kept" if is_of_memory else "no worker can boot"
            self._run.stop.begin(now=True, why=why, error=failure)
