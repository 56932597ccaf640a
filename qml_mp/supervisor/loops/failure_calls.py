"""Supervisor: wakes a worker for calls about failed jobs that are due, as of jobs whose process died."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import NEVER, Loop


class FailureCallLoop(Loop):
    """Due now and then, for a program that wants such calls. The workers look by themselves while they are
    busy, and make the calls."""

    name = "failure calls"
    interval = timedelta(seconds=2)

    def due_at(self) -> float:
        return super().due_at() if self._run.registration.wants_failures else NEVER

    def tick(self, storage: Storage) -> None:
        methods = self._run.registration.says.methods or ()
        if any(worker.is_idle for worker in self._run.pool) and storage.has_failure_callbacks(methods):
            self._run.pool.wake_idle(1)
