"""Supervisor: takes every job that has to end up the ladder of `ladder.py`."""

from __future__ import annotations

import logging

from qml_mp.clock import Clock
from qml_mp.ipc.slot import Activity
from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.workers.ladder import Graces, Plan, Rung, highest, next_rung_at
from qml_mp.supervisor.workers.pool import Fleet
from qml_mp.supervisor.workers.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

_LEAVING_S = 1.0
"""What a worker without a job may take to leave when the server stops: it may be waiting for storage."""


class Pusher:
    """Looks at what each worker runs, and pushes. `stopping` is set once, when the server stops."""

    def __init__(self, fleet: Fleet, graces: Graces, clock: Clock) -> None:
        self._fleet = fleet
        self._graces = graces
        self._clock = clock
        self.stopping: Plan | None = None
        self.busy_at = float("-inf")
        """When a worker was last seen with a job in hand."""

    def push(self) -> None:
        """Do what is due now for every worker."""
        now = self._clock.monotonic()
        if self.stopping is not None:
            self._fleet.drain()
            if self.stopping.rung(now) is Rung.KILL:
                self._fleet.kill_all(CancelReason.SHUTDOWN)
                return
        for member in self._fleet:
            if member.is_busy:
                member.busy_at = self.busy_at = now
            elif now >= self._must_have_left_at(member) and member.killed_for is None:
                logger.warning("Worker %s has no job and does not leave; killing it", member.number)
                member.kill(CancelReason.SHUTDOWN)
            plan = highest(self._plans(member), now=now)
            if plan is not None and member.last.key is not None:
                member.push(plan.rung(now), member.last.key, plan.reason)

    def next_at(self) -> float | None:
        """When the next rung of anybody is due; None: never."""
        now = self._clock.monotonic()
        plans = [plan for member in self._fleet for plan in self._plans(member)]
        if self.stopping is not None:
            plans.append(self.stopping)
        leaving = (self._must_have_left_at(member) for member in self._fleet if not member.is_busy)
        wishes = [next_rung_at(plans, now=now), *(at for at in leaving if at > now)]
        return min((at for at in wishes if at is not None and at < float("inf")), default=None)

    def _must_have_left_at(self, member: WorkerProcess) -> float:
        if self.stopping is None:
            return float("inf")
        return max(self.stopping.ask_at, member.busy_at) + _LEAVING_S

    def _plans(self, member: WorkerProcess) -> list[Plan]:
        """What the job in hand is up against. A job whose outcome is being written is left alone,
        but for the deadline of the whole server."""
        view = member.last
        if view.activity is not Activity.RUNNING or view.key is None:
            return []
        plans = [self._graces.timeout(started=view.since_ns / 1e9, limit_s=view.limit_ns / 1e9)]
        cancel = member.cancels.get(view.key)
        if cancel is not None:
            plans.append(cancel)
        if self.stopping is not None:
            plans.append(self.stopping)
        return plans
