"""Supervisor: watches workers that hold more than the job in hand, so that nobody waits for a long one.

A worker that claims several jobs expects them to be short. When one is not, the tickets of the others are
taken from its pipe here, and what has ended before is to be written, by a loop (`ReturnLoop`): that needs
storage, and this must not wait for it. It works whatever the job does, because the worker is not asked.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qml_mp.child.estimate import WAIT_S
from qml_mp.ipc.slot import Activity
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for
from qml_mp.supervisor.workers.worker_process import WorkerProcess

_STUCK_S = 0.5
"""Without a job that runs: storage may be slow, and what goes back then costs it another write."""
_WATCHED_S = 0.1
"""After the last ticket that was seen: a worker at full speed has others soon, and each would wake us."""


@dataclass(kw_only=True)
class _Watch:
    """A worker that has tickets in its pipe, or had some a moment ago."""

    until: float
    jobs_done: int
    since: float
    """When it was first seen with so many done."""


class HeldClaims(Part):
    """Waits for the tickets of workers that have none, and looks at those that have some now and then."""

    def __init__(self, run: Run) -> None:
        self._pool = run.pool
        self._clock = run.clock
        self._watches: dict[str, _Watch] = {}
        self._looked_at = 0.0
        self._in_long_job: set[str] = set()

    def fds(self) -> list[int]:
        return [
            worker.channels.tickets.reading_fd
            for worker in self._pool
            if worker.worker_id not in self._watches
        ]

    def own_fds(self) -> Collection[int]:
        return ()  # the pool tells them

    def next_at(self) -> float:
        """When a job that runs now, or one that begins after this look, will have taken long."""
        now = self._clock.monotonic()
        watched = [worker for worker in self._pool if worker.worker_id in self._watches]
        running = [
            _began_at(worker) + WAIT_S for worker in watched if worker.last.activity is Activity.RUNNING
        ]
        return (
            min([self._looked_at + WAIT_S, *(at for at in running if at > now)]) if watched else float("inf")
        )

    def turn(self) -> None:
        """Take the tickets of workers that do not come to them."""
        now = self._looked_at = self._clock.monotonic()
        lying = wait_for((worker.channels.tickets.reading_fd for worker in self._pool), until=0)
        self._in_long_job.clear()
        for worker in self._pool:
            if worker.last.activity is Activity.RUNNING and now - _began_at(worker) >= WAIT_S:
                self._in_long_job.add(worker.worker_id)
            has_tickets = worker.channels.tickets.reading_fd in lying
            is_stuck = self._is_stuck(worker, now, has_tickets=has_tickets)
            if has_tickets and (is_stuck or worker.worker_id in self._in_long_job):
                worker.taken.update(worker.channels.tickets.take_all())
        for worker_id in self._watches.keys() - {worker.worker_id for worker in self._pool}:
            del self._watches[worker_id]

    def has_work(self) -> bool:
        """Whether there is something to give back or to write."""
        return any(worker.taken or self.has_to_write(worker) for worker in self._pool)

    def has_to_write(self, worker: WorkerProcess) -> bool:
        """Whether jobs of this worker have ended whose outcomes it cannot write soon."""
        return worker.worker_id in self._in_long_job and worker.channels.ended.has_unwritten

    def _is_stuck(self, worker: WorkerProcess, now: float, *, has_tickets: bool) -> bool:
        """Whether it has tickets and ends no job, be it that hooks or storage take long."""
        done, watch = worker.last.jobs_done, self._watches.get(worker.worker_id)
        if watch is None or watch.jobs_done != done:
            watch = _Watch(until=0.0 if watch is None else watch.until, jobs_done=done, since=now)
        if has_tickets:
            watch.until = now + _WATCHED_S
        if now < watch.until:
            self._watches[worker.worker_id] = watch
        else:
            self._watches.pop(worker.worker_id, None)
        return has_tickets and now - watch.since >= _STUCK_S


def _began_at(worker: WorkerProcess) -> float:
    return worker.last.since_ns / 1e9
