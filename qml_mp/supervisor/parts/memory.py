"""Supervisor: memory limits of workers: a limit too low to start with, and the hard one during jobs."""

from __future__ import annotations

import logging

from qml_mp import host
from qml_mp.errors import ConfigurationError
from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.part import Part
from qml_mp.supervisor.run import Run
from qml_mp.units import format_size

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1


class MemoryWatch(Part):
    """Reads the kernel's own figures of every busy worker, as often as a limit makes it worth while."""

    def __init__(self, run: Run) -> None:
        config = run.config
        self._limits = [size for size in (config.max_memory, config.max_memory_hard) if size is not None]
        self._hard_bytes = config.max_memory_hard
        self._pool = run.pool
        self._stop = run.stop
        self._clock = run.clock
        self._look_at = 0.0
        self._is_checked = not self._limits
        self.refusal: ConfigurationError | None = None
        """Why the limits cannot be kept."""

    def next_at(self) -> float:
        """Never without a hard limit, or while nobody is busy."""
        busy = self._hard_bytes is not None and any(worker.is_busy for worker in self._pool)
        return self._look_at if busy else float("inf")

    def turn(self) -> None:
        self._kill_above_hard_limit()
        self._check_limits()

    def _kill_above_hard_limit(self) -> None:
        """Of the workers in a job."""
        if self._hard_bytes is None or self._clock.monotonic() < self._look_at:
            return
        self._look_at = self._clock.monotonic() + _LOOK_EVERY_S
        for worker in self._pool:
            used_bytes = (host.rss_bytes(worker.child.pid) or 0) if worker.is_busy else 0
            if used_bytes > self._hard_bytes and worker.killed_for is None:
                logger.error(
                    "Worker %s uses %s, more than the hard limit of %s; killing it",
                    worker.number,
                    format_size(used_bytes),
                    format_size(self._hard_bytes),
                )
                worker.kill(CancelReason.MEMORY, worker.last.key)

    def _check_limits(self) -> None:
        """Stop when the first worker that is ready uses more than a limit, before its first job."""
        if self._is_checked:
            return
        limit_bytes = min(self._limits)
        for worker in self._pool:
            if not worker.is_ready or worker.last.jobs_done or worker.is_busy:
                continue
            self._is_checked = True
            used_bytes = host.rss_bytes(worker.child.pid) or 0
            if used_bytes >= limit_bytes:
                self.refusal = ConfigurationError(
                    f"The memory limit of {format_size(limit_bytes)} is less than what a worker uses before "
                    f"its first job ({format_size(used_bytes)}), so it would be replaced for ever. Raise it."
                )
                self._stop.begin(now=True, why="its memory limit cannot be kept")
                return
