"""Supervisor: SIGUSR1: has every worker write its Python stack, and prints them a moment later."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from qml_mp.supervisor.workers.worker_process import WorkerProcess

logger = logging.getLogger(__name__)

_WRITING_S = 0.1


class StackDump:
    """At most one is under way."""

    def __init__(self) -> None:
        self.print_at = float("inf")

    def ask(self, workers: Iterable[WorkerProcess], *, now: float) -> None:
        """Have them write."""
        for worker in workers:
            if worker.is_ready:
                worker.ask_for_stack()
        self.print_at = now + _WRITING_S

    def print_if_due(self, workers: Iterable[WorkerProcess], *, now: float) -> None:
        """Print what they have written, once there was time for it."""
        if now < self.print_at:
            return
        self.print_at = float("inf")
        for worker in workers:
            what = worker.last.method if worker.is_busy else "idle"
            stack = worker.stack() or "no stack: its job has blocked or taken the signal that asks for it"
            logger.info("Worker %s (pid %s, %s):\n%s", worker.number, worker.child.pid, what, stack)
