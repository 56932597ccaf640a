"""Supervisor: SIGUSR1: has every worker write its Python stack, and prints them a moment later."""

from __future__ import annotations

import logging

from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run

logger = logging.getLogger(__name__)

_WRITING_S = 0.1


class StackDump(Part):
    """At most one is under way."""

    def __init__(self, run: Run) -> None:
        self._pool = run.pool
        self._clock = run.clock
        self._print_at = float("inf")

    def ask(self) -> None:
        """Have them write."""
        for worker in self._pool:
            if worker.is_ready:
                worker.ask_for_stack()
        self._print_at = self._clock.monotonic() + _WRITING_S

    def next_at(self) -> float:
        return self._print_at

    def turn(self) -> None:
        """Print what they have written, once there was time for it."""
        if self._clock.monotonic() < self._print_at:
            return
        self._print_at = float("inf")
        for worker in self._pool:
            what = worker.last.method if worker.is_busy else "idle"
            stack = worker.stack() or "no stack: its job has blocked or taken the signal that asks for it"
            logger.info("Worker %s (pid %s, %s):\n%s", worker.number, worker.child.pid, what, stack)
