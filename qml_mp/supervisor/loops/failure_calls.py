"""Supervisor: wakes a worker for what a program wants to be told of jobs whose process died: that they have
failed, and, where it traces its attempts, how they ended."""

from __future__ import annotations

from datetime import timedelta

from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import NEVER, Loop


class FailureCallLoop(Loop):
    """Due now and then, for a program that wants it. The workers look by themselves while they are busy, and
    do what there is to do."""

    name = "failure calls"
    interval = timedelta(seconds=2)

    def due_at(self) -> float:
        registration = self._run.registration
        return super().due_at() if registration.wants_failures or registration.traces else NEVER

    def tick(self, storage: Storage) -> None:
        if any(worker.is_idle for worker in self._run.pool) and self._is_any(storage):
            self._run.pool.wake_idle(1)

    def _is_any(self, storage: Storage) -> bool:
        registration = self._run.registration
        methods = registration.says.methods or ()
        return (registration.wants_failures and storage.has_failure_callbacks(methods)) or (
            registration.traces and storage.has_lost_attempts(methods)
        )
