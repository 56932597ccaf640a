"""Supervisor: what everything in one run of a server works with."""

from __future__ import annotations

import random
from dataclasses import dataclass

from qml_mp.clock import Clock
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import TryWorked
from qml_mp.events.retrying import Retrying
from qml_mp.settings import ServerConfig
from qml_mp.storage.values import Retention
from qml_mp.supervisor.part import Parts
from qml_mp.supervisor.registration import ServerRegistration
from qml_mp.supervisor.stopping import Stop
from qml_mp.supervisor.workers.ladder import Graces
from qml_mp.supervisor.workers.pool import WorkerPool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Handed to each loop and part, which use what they need of it."""

    config: ServerConfig
    events: Emitter
    clock: Clock
    rng: random.Random
    graces: Graces
    reaching: Retrying
    """How storage could be reached so far."""
    registration: ServerRegistration
    pool: WorkerPool
    stop: Stop
    everyone: Parts
    """All parts: they get ready for each fork."""

    @property
    def retention(self) -> Retention:
        """How long final jobs are kept."""
        return Retention.of(self.config)

    def retrying(self, works: TryWorked) -> Retrying:
        """For one thing that may fail and is tried again."""
        return Retrying(self.events, works=works, rng=self.rng)
