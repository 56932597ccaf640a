"""Supervisor: takes every job that has to end up the ladder of `workers/ladder.py`."""

from __future__ import annotations

import logging

from qml_mp.ipc.slot import Activity
from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.ladder import Plan, Rung, highest, next_rung_at
from qml_mp.supervisor.workers.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

_LEAVING_S = 1.0
"""What a worker without a job may take to leave when the server stops: it may be waiting for storage."""


class Pusher(Part):
    """Compares what each worker runs with the limits of its job, the cancels and the stop."""

    def __init__(self, run: Run) -> None:
        self._pool = run.pool
        self._graces = run.graces
        self._stop = run.stop
        self._clock = run.clock

    def turn(self) -> None:
        """Do what is due now for every worker."""
        now = self._clock.monotonic()
        if self._stop.plan is not None:
            self._pool.drain()
            if self._stop.plan.rung(now) is Rung.KILL:
                self._pool.kill_all(CancelReason.SHUTDOWN)
                return
        for worker in self._pool:
            if not worker.is_busy and worker.killed_for is None and now >= self._must_have_left_at(worker):
                logger.warning("Worker %s has no job and does not leave; killing it", worker.number)
                worker.kill(CancelReason.SHUTDOWN)
            plan = highest(self._plans(worker), now=now)
            if plan is not None and worker.last.key is not None:
                worker.push(plan.rung(now), worker.last.key, plan.reason)

    def next_at(self) -> float:
        now = self._clock.monotonic()
        plans = [plan for worker in self._pool for plan in self._plans(worker)]
        if self._stop.plan is not None:
            plans.append(self._stop.plan)
        leaving = (self._must_have_left_at(worker) for worker in self._pool if not worker.is_busy)
        return min([next_rung_at(plans, now=now), *(at for at in leaving if at > now)])

    def _must_have_left_at(self, worker: WorkerProcess) -> float:
        if self._stop.plan is None:
            return float("inf")
        return max(self._stop.plan.ask_at, worker.busy_at) + _LEAVING_S

    def _plans(self, worker: WorkerProcess) -> list[Plan]:
        """What the job in hand is up against. A job whose outcome is being written is left alone,
        but for the deadline of the whole server."""
        view = worker.last
        if view.activity is not Activity.RUNNING or view.key is None:
            return []
        timeout = self._graces.timeout(started=view.since_ns / 1e9, limit_s=view.limit.total_seconds())
        plans = (timeout, worker.cancel_of(view.key), self._stop.plan)
        return [plan for plan in plans if plan is not None]
