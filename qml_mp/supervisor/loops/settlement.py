"""Supervisor: what needs storage beside the four loops, each as a tick of its own.

Settling the dead, and carrying cancels to workers.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.clock import Clock
from qml_mp.errors import StorageUnreachable
from qml_mp.settings import ServerConfig
from qml_mp.storage.protocol import Retention, Storage
from qml_mp.supervisor.loops.loop import NEVER, Tick
from qml_mp.supervisor.recovery.settle import Death, settle
from qml_mp.supervisor.retrying import Retrying
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.pool import Fleet

logger = logging.getLogger(__name__)

_PATIENCE_S = 0.2  # of one turn, with what storage refuses
_CANCEL_INTERVAL = timedelta(seconds=1)
_CANCEL_AFTER_NEWS = timedelta(milliseconds=100)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unsettled:
    """A dead worker, and what its claims have met with so far."""

    death: Death
    tries: Retrying


class Chores:
    """Work that the supervisor's loop hands over to ticks. Owned by its one thread."""

    def __init__(
        self, config: ServerConfig, *, fleet: Fleet, graces: Graces, clock: Clock, rng: random.Random
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._graces = graces
        self._clock = clock
        self._rng = rng
        self._retention = Retention.of(config)
        self._unsettled: list[_Unsettled] = []
        self.spares_empty_handed = False
        """Set by the supervisor when it stops: who left empty-handed is settled with the whole server."""

    @property
    def unsettled(self) -> int:
        """Dead workers whose claims have to be finished yet."""
        return len(self._to_settle())

    def unsettled_ids(self) -> set[str]:
        """Their worker ids."""
        return {one.death.worker_id for one in self._unsettled}

    def remember(self, death: Death) -> None:
        """A worker died: settle what it held."""
        tries = Retrying(
            fails=f"Settling dead worker {death.worker_id} failed",
            works=f"Dead worker {death.worker_id} is settled now",
            rng=self._rng,
        )
        self._unsettled.append(_Unsettled(death=death, tries=tries))

    def settle_tick(self, *, wake: Callable[[], None]) -> Tick:
        """Settles the dead, oldest first; due whenever somebody dies, and until storage has heard.
        One that cannot be settled is tried again by itself, and holds up no other."""

        def run(storage: Storage) -> timedelta | None:
            self.settle_due(storage, wake=wake)
            again_at = min((one.tries.not_before for one in self._to_settle()), default=None)
            return None if again_at is None else timedelta(seconds=again_at - self._clock.monotonic())

        return Tick(name="settle", interval=NEVER, body=run)

    def settle_due(self, storage: Storage, *, wake: Callable[[], None]) -> None:
        """Settle those who are not in a pause after a failure. Raises `StorageUnreachable` alone."""
        began = self._clock.monotonic()
        for one in self._to_settle():
            now = self._clock.monotonic()
            if now >= one.tries.not_before:
                self._settle(storage, one, wake)
            if one.tries.is_failing and now - began > _PATIENCE_S:
                return  # each may wait for a lock, and the supervisor has more to do

    def cancel_tick(self, *, own_id: Callable[[], str]) -> Tick:
        """Finds the running jobs that somebody wants cancelled, and starts their ladder."""

        def run(storage: Storage) -> None:
            if not any(member.is_busy for member in self._fleet):
                return
            by_worker = {member.worker_id: member for member in self._fleet}
            for request in storage.cancel_requests(own_id()):
                member = by_worker.get(request.worker_id)
                if member is not None and request.key not in member.cancels:
                    logger.info("Cancelling job %s", request.key.job_id, extra={"job_id": request.key.job_id})
                    member.cancels = {request.key: self._graces.cancel(asked=self._clock.monotonic())}

        return Tick(name="cancel", interval=_CANCEL_INTERVAL, body=run, hasten_after=_CANCEL_AFTER_NEWS)

    def everybody_is_idle(self) -> bool:
        """Whether all workers that there is room for are there and without a job, and every dead one's claims
        are finished."""
        whole = len(self._fleet) >= self._fleet.size or self._fleet.shortage is not None
        return whole and not self._unsettled and all(member.is_idle for member in self._fleet)

    def _to_settle(self) -> list[_Unsettled]:
        return [one for one in self._unsettled if not (self.spares_empty_handed and one.death.left_nothing)]

    def _settle(self, storage: Storage, one: _Unsettled, wake: Callable[[], None]) -> None:
        try:
            claims = settle(
                storage, one.death, max_crashes=self._config.max_crashes, retention=self._retention
            )
        except StorageUnreachable:
            raise
        except Exception as error:
            one.tries.failed(error, now=self._clock.monotonic())
            return
        one.tries.worked()
        self._unsettled.remove(one)
        if claims:
            wake()
