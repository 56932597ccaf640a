"""Supervisor: what everything in one run of a server works with."""

from __future__ import annotations

import logging
import random

from qml_mp.child.source import AppFacts, ProgramSource
from qml_mp.clock import Clock, SystemClock
from qml_mp.events.counts import EventCounts
from qml_mp.events.emitter import new_emitter
from qml_mp.events.facts import StorageBack, StorageLost, TryWorked
from qml_mp.events.retrying import Retrying
from qml_mp.ipc.slot import SlotTable
from qml_mp.ipc.troubles import TroubleTable
from qml_mp.settings import ServerConfig
from qml_mp.storage.values import Retention
from qml_mp.supervisor.part import Parts
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.stopping import Stop
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.pool import WorkerPool
from qml_mp.supervisor.workers.worker_process import WorkerSpec

logger = logging.getLogger(__name__)

MOST_SIDE_PROCESSES = 2


class Run:
    """Handed to each loop and part, which use what they need of it and change none of its fields."""

    def __init__(
        self,
        config: ServerConfig,
        source: ProgramSource,
        *,
        url: str,
        facts: AppFacts,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.url = url
        self.app = facts.spec
        """The "module:attribute" of the app; "": there is none."""
        self.counts = EventCounts()
        self.events = new_emitter(self.counts.count)
        self.clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self.graces = Graces(
            cancel_grace=config.cancel_grace,
            term_grace=config.term_grace,
            shutdown_timeout=config.shutdown_timeout,
        )
        self.reaching = Retrying(self.events, fails=StorageLost, works=StorageBack(), rng=self._rng)
        """How storage could be reached so far."""
        self.registration = ServerRegistration(config, clock=self.clock, events=self.events, facts=facts)
        self.side_slots = SlotTable(MOST_SIDE_PROCESSES)
        """Which processes run beside the workers, for the guardian."""
        self.all_parts = Parts()
        """They get ready for each fork."""
        self.worker_troubles = TroubleTable()
        """What workers add to."""
        spec = WorkerSpec(
            server_id=self.registration.id,
            config=config,
            url=url,
            source=source,
            troubles=self.worker_troubles,
        )
        self.pool = WorkerPool(spec, all_parts=self.all_parts, clock=self.clock, events=self.events)
        self.stop = Stop(
            pool=self.pool,
            graces=self.graces,
            reaching=self.reaching,
            clock=self.clock,
            events=self.events,
        )

    @property
    def retention(self) -> Retention:
        return Retention.of(self.config)

    def pause_claims(self, paused: bool) -> None:
        """Have no worker claim until told otherwise, or end that; the registry says so."""
        self.pool.pause(paused)
        self.registration.pause(paused)
        logger.info("Claims are %s", "paused" if paused else "resumed")

    def retrying(self, worked: str) -> Retrying:
        """For one thing that may fail and is tried again; `worked` tells people that it has worked again."""
        return Retrying(self.events, works=TryWorked(what=worked), rng=self._rng)
