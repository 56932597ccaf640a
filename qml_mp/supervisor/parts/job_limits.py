"""Supervisor: takes every job that has to end up the ladder of `workers/ladder.py`, and keeps workers to the
hard limit of their memory."""

from __future__ import annotations

import logging

from qml_mp import host
from qml_mp.ipc.slot import Activity, SlotView
from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.ladder import Plan, Rung
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from qml_mp.units import format_size

logger = logging.getLogger(__name__)

_LEAVING_S = 1.0
"""What a worker without a job may take to leave when the server stops: it may be waiting for storage. One
that is leaving and exports its spans has the time for that on top."""
_LEAVING_UNHURRIED_S = 5.0
"""The same while the server does not stop: nothing is gained by the kill of one that takes its time, and its
last flushes alone may take a second."""
_LONGEST_QUESTION_S = 60.0
"""What one has then that was told to leave and may be waiting for storage: it is more than storage takes to
answer or to fail."""
_LOOK_EVERY_S = 0.1


class Pusher(Part):
    """Compares what each worker runs with the limits of its job, the cancels and the stop."""

    def __init__(self, run: Run) -> None:
        self._pool = run.pool
        self._graces = run.graces
        self._stop = run.stop
        self._clock = run.clock
        self._registration = run.registration

    def turn(self) -> None:
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
            # The one that pushes furthest now; of equals, the one whose kill comes first.
            plan = max(
                self._plans(worker, now), key=lambda plan: (plan.rung(now), -plan.kill_at), default=None
            )
            if plan is not None and worker.last.key is not None:
                worker.push(plan.rung(now), worker.last.key, plan.reason, now)

    def next_at(self) -> float:
        now = self._clock.monotonic()
        plans = [plan for worker in self._pool for plan in self._plans(worker, now)]
        if self._stop.plan is not None:
            plans.append(self._stop.plan)
        leaving = (self._must_have_left_at(worker) for worker in self._pool if not worker.is_busy)
        rungs = (plan.next_after(now) for plan in plans)
        limits = (_limit_at(worker.last) for worker in self._pool)
        return min([float("inf"), *rungs, *(at for at in (*leaving, *limits) if at > now)])

    def _must_have_left_at(self, worker: WorkerProcess) -> float:
        """Infinity for one that may stay, or has something to do first. What hangs then is what its jobs have
        left behind, such as a thread that holds the lock of standard output: it would never leave, and no
        other worker would be replaced as long as it is there."""
        is_leaving = worker.last.activity is Activity.LEAVING
        flush_s = self._registration.flush_timeout.total_seconds() if is_leaving else 0.0
        if self._stop.plan is not None:
            return max(self._stop.plan.ask_at, worker.busy_at) + _LEAVING_S + flush_s
        return worker.going_at + (_LEAVING_UNHURRIED_S + flush_s if is_leaving else _LONGEST_QUESTION_S)

    def _plans(self, worker: WorkerProcess, now: float) -> list[Plan]:
        """What the job in hand is up against now. A job whose outcome is being written is left alone,
        but for the deadline of the whole server. A hook that is told of it has the limit of the job, and is
        not what somebody wants cancelled."""
        view = worker.last
        if view.activity is not Activity.RUNNING or view.key is None:
            return []
        limit_at = _limit_at(view)
        timeout = self._graces.timeout(at=limit_at) if now >= limit_at else None
        cancel = None if view.is_over else worker.cancel_of(view.key)
        plans = (timeout, cancel, self._stop.plan)
        taken_at = worker.rungs_of(view.key)
        return [plan.begun(taken_at, now) for plan in plans if plan is not None]


def _limit_at(view: SlotView) -> float:
    """When the time limit of the job in hand has passed; infinity without one in hand."""
    if view.activity is not Activity.RUNNING:
        return float("inf")
    return view.since_ns / 1e9 + view.limit.total_seconds()


def _runs(worker: WorkerProcess) -> bool:
    return worker.last.activity is Activity.RUNNING


class MemoryWatch(Part):
    """The hard limit during jobs. Reads the kernel's own figures of every worker with a job in hand, as often
    as the limit makes it worth while. Once that has ended it is left alone: a worker that is above the limit
    then leaves by itself, when it has written what came of the job."""

    def __init__(self, run: Run) -> None:
        self._hard_bytes = run.config.max_memory_hard
        self._pool = run.pool
        self._clock = run.clock
        self._look_at = 0.0

    def next_at(self) -> float:
        """Never without a hard limit, or while nobody is busy."""
        busy = self._hard_bytes is not None and any(worker.is_busy for worker in self._pool)
        return self._look_at if busy else float("inf")

    def turn(self) -> None:
        now = self._clock.monotonic()
        if self._hard_bytes is None or now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        for worker in self._pool:
            if not _runs(worker) or worker.killed_for is not None:
                continue
            view, used_bytes = worker.last, host.rss_bytes(worker.child.pid) or 0
            is_still = used_bytes > self._hard_bytes and worker.look(now) == view
            if is_still:  # else the job has ended meanwhile
                logger.error(
                    "Worker %s uses %s, more than the hard limit of %s; killing it",
                    worker.number,
                    format_size(used_bytes),
                    format_size(self._hard_bytes),
                )
                worker.kill(CancelReason.MEMORY, view.key)
