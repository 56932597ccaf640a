"""Supervisor: watches workers that hold more than the job in hand, so that nobody waits for a long one.

A worker that claims several jobs expects them to be short. When one is not, the tickets of the others are
taken from its pipe here, and what has ended before is to be written, by a loop (`ReturnLoop`): that needs
storage, and this must not wait for it. It works whatever the job does, because the worker is not asked.

With more workers than processors, a job of a moment can take long because others run. Then nothing is gained
by giving its worker's claims to these: a worker that is ready to run and does not come to it has more time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from qml_mp import host
from qml_mp.child.estimate import LONG_S, WAIT_S
from qml_mp.ipc.slot import Activity
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for
from qml_mp.supervisor.workers.worker_process import WorkerProcess

_STUCK_S = 0.5
"""Without a job that runs: storage may be slow, and what goes back then costs it another write. No worker is
believed to starve for longer either."""
_STARVED_S = WAIT_S / 4
"""A worker that had less of the processors since a job began may just have to wait for them."""
_LOOK_AT_STARVED_EVERY_S = 0.01
_MOST_LOOKS = 64  # more than there are in the longest that a worker may starve
_WATCHED_S = 0.1
"""After the last ticket that was seen: a worker at full speed has others soon, and each would wake us."""


@dataclass(kw_only=True)
class _Watch:
    """A worker that has tickets in its pipe, or had some a moment ago."""

    until: float
    jobs_done: int
    since: float
    """When it was first seen with so many done."""
    looks: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MOST_LOOKS), init=False)
    """When it was looked at, and how long its process had run until then."""
    ran_s: float | None = field(default=None, init=False)
    """How long it had at this look; None: that is not known."""


class HeldClaims(Part):
    """Waits for the tickets of workers that have none, and looks at those that have some now and then."""

    def __init__(self, run: Run) -> None:
        self._pool = run.pool
        self._clock = run.clock
        self._watches: dict[str, _Watch] = {}
        self._looked_at = 0.0
        self._in_long_job: dict[str, float] = {}
        """When the job began of each worker that is in a long one."""
        self._look_again_at = float("inf")
        """At a worker that starves."""

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
            _began_at(worker) + _long_s(worker)
            for worker in watched
            if worker.last.activity is Activity.RUNNING
        ]
        if not watched:
            return float("inf")
        look_at = self._looked_at + min(map(_long_s, watched))
        return min([look_at, self._look_again_at, *(at for at in running if at > now)])

    def turn(self) -> None:
        """Take the tickets of workers that do not come to them."""
        now = self._looked_at = self._clock.monotonic()
        lying = wait_for((worker.channels.tickets.reading_fd for worker in self._pool), until=0)
        self._in_long_job.clear()
        self._look_again_at = float("inf")
        for worker in self._pool:
            has_tickets = worker.channels.tickets.reading_fd in lying
            watch = self._watch(worker, now, has_tickets=has_tickets)
            is_running = worker.last.activity is Activity.RUNNING
            is_running_long = is_running and now - _began_at(worker) >= _long_s(worker)
            if is_running_long and not self._starves(worker, watch, now):
                self._in_long_job[worker.worker_id] = _began_at(worker)
            is_stuck = now - watch.since >= _STUCK_S
            if has_tickets and (is_stuck or worker.worker_id in self._in_long_job):
                worker.taken.update(worker.channels.tickets.take_all())
        for worker_id in self._watches.keys() - {worker.worker_id for worker in self._pool}:
            del self._watches[worker_id]

    def has_work(self) -> bool:
        """Whether there is something to give back or to write."""
        return any(worker.taken or self.has_to_write(worker) for worker in self._pool)

    def has_to_write(self, worker: WorkerProcess) -> bool:
        """Whether jobs of this worker have ended whose outcomes it cannot write soon."""
        began_at = self._in_long_job.get(worker.worker_id)
        if began_at is None or not worker.channels.ended.has_unwritten:
            return False
        worker.look(self._clock.monotonic())  # what is unwritten may be what came of the long job itself
        return worker.last.activity is Activity.RUNNING and _began_at(worker) == began_at

    def _watch(self, worker: WorkerProcess, now: float, *, has_tickets: bool) -> _Watch:
        """What is known of the worker. It stays watched for a moment after its last ticket, and is stuck when
        it has some and ends no job, be it that hooks or storage take long."""
        done = worker.last.jobs_done
        watch = self._watches.get(worker.worker_id) or _Watch(until=0.0, jobs_done=done, since=now)
        if watch.jobs_done != done:
            watch.jobs_done, watch.since = done, now
        if has_tickets:
            watch.until = now + _WATCHED_S
        if now < watch.until:
            self._watches[worker.worker_id] = watch
            watch.ran_s = host.ran_s(worker.child.pid)
            if watch.ran_s is not None:
                watch.looks.append((now, watch.ran_s))
        else:
            watch.ran_s = None
            self._watches.pop(worker.worker_id, None)
        return watch

    def _starves(self, worker: WorkerProcess, watch: _Watch, now: float) -> bool:
        """Whether it is ready to go on with its job, and came to it less than that may take."""
        since, long_s = _began_at(worker), _long_s(worker)
        if now - since >= _STUCK_S or watch.ran_s is None:
            return False
        before = next((ran_s for at, ran_s in reversed(watch.looks) if at <= since), watch.looks[0][1])
        if watch.ran_s - before >= (long_s if long_s > LONG_S else _STARVED_S):
            return False
        if not host.is_ready(worker.child.pid):
            return False
        self._look_again_at = now + _LOOK_AT_STARVED_EVERY_S
        return True


def _long_s(worker: WorkerProcess) -> float:
    """How long its job may take before others get what it holds."""
    return worker.slots.patience_s(worker.index) if worker.slots.unread(worker.index) else LONG_S


def _began_at(worker: WorkerProcess) -> float:
    return worker.last.since_ns / 1e9
