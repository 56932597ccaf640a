"""Supervisor: ends workers that hang where no job runs, which no time limit does.

A finalizer that the collector runs there, a thread that a job has left and that keeps the interpreter lock,
or somebody who has stopped the process: whatever it is, such a worker takes no job any more, and what it
holds nobody else gets. A worker that waits for storage reads its pipe between two tries, of which none takes
so long.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.ipc.pipe import Kind, Message, holds_messages, send
from qml_mp.ipc.slot import Activity
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.worker_process import WorkerProcess
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0
_PATIENCE_S = 120.0
"""Besides what a flush of spans may take. Counted in looks, because a supervisor that was itself stopped has
not looked meanwhile."""
_BETWEEN_JOBS = (Activity.IDLE, Activity.FETCHING, Activity.FINISHING)


@dataclass(slots=True, kw_only=True)
class _Seen:
    """Of a worker that has shown nothing new since."""

    mark: tuple[int, int]
    looks: int = 0
    """At which it had not read its pipe."""


class StuckWorkers(Part):
    """Looks now and then. A worker that has something to do is asked for a sign of life. One that idles is
    woken as soon as there is a job for it, and is not disturbed before."""

    def __init__(self, run: Run) -> None:
        self._pool = run.pool
        self._registration = run.registration
        self._clock = run.clock
        self._look_at = run.clock.monotonic() + _LOOK_EVERY_S
        self._seen: dict[str, _Seen] = {}

    def next_at(self) -> float:
        return self._look_at

    def turn(self) -> None:
        now = self._clock.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY_S
        before, self._seen = self._seen, {}
        for worker in self._pool:
            if worker.is_ready and worker.last.activity in _BETWEEN_JOBS:
                self._seen[worker.worker_id] = self._look(worker, before.get(worker.worker_id))

    def _look(self, worker: WorkerProcess, before: _Seen | None) -> _Seen:
        seen = _Seen(mark=worker.slots.mark(worker.index))
        if before is None or before.mark != seen.mark:
            return seen
        if holds_messages(worker.channels.pipe_fd):
            seen.looks = before.looks + 1
            patience_s = _PATIENCE_S + self._registration.flush_timeout.total_seconds()
            if seen.looks * _LOOK_EVERY_S >= patience_s:
                _end(worker, stuck_for=timedelta(seconds=seen.looks * _LOOK_EVERY_S))
        elif worker.last.activity is not Activity.IDLE or worker.has_to_look:
            send(worker.channels.pipe_fd, Message(kind=Kind.PROBE))
        return seen


def _end(worker: WorkerProcess, *, stuck_for: timedelta) -> None:
    """What had ended in it is written, and what it has not begun goes to others, as whenever one dies."""
    logger.error(
        "Worker %s (pid %s) has not moved for %s, where no job runs; killing it",
        worker.number, worker.child.pid, format_duration(stuck_for),
    )  # fmt: skip
    worker.kill(None)
