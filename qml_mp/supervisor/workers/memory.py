"""Supervisor: memory limits of workers: a limit too low to start with, and the hard one during jobs."""

from __future__ import annotations

import logging

from qml_mp import host
from qml_mp.clock import Clock
from qml_mp.errors import ConfigurationError
from qml_mp.processing.cancel import CancelReason
from qml_mp.settings import ServerConfig
from qml_mp.supervisor.workers.pool import Fleet
from qml_mp.units import format_size

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1


class MemoryWatch:
    """Reads the kernel's own figures of every busy worker, as often as a limit makes it worth while."""

    def __init__(self, config: ServerConfig, *, fleet: Fleet, clock: Clock) -> None:
        self._soft_bytes = config.max_memory
        self._hard_bytes = config.max_memory_hard
        self._fleet = fleet
        self._clock = clock
        self._look_at = 0.0
        self._was_checked = self._soft_bytes is None and self._hard_bytes is None

    def next_at(self) -> float | None:
        """When to look again; None: no hard limit, or nobody is busy."""
        busy = self._hard_bytes is not None and any(member.is_busy for member in self._fleet)
        return self._look_at if busy else None

    def refusal(self) -> ConfigurationError | None:
        """Why the limits cannot be: the first worker that is ready uses more, before its first job."""
        if self._was_checked:
            return None
        limit_bytes = min(size for size in (self._soft_bytes, self._hard_bytes) if size is not None)
        for member in self._fleet:
            if not member.ready or member.last.jobs_done or member.is_busy:
                continue
            self._was_checked = True
            used_bytes = host.rss_bytes(member.child.pid) or 0
            if used_bytes >= limit_bytes:
                return ConfigurationError(
                    f"The memory limit of {format_size(limit_bytes)} is less than what a worker uses before "
                    f"its first job ({format_size(used_bytes)}), so it would be replaced for ever. Raise it."
                )
        return None

    def look(self) -> None:
        """Kill every worker that is above the hard limit in its job."""
        if self._hard_bytes is None or self._clock.monotonic() < self._look_at:
            return
        self._look_at = self._clock.monotonic() + _LOOK_EVERY_S
        for member in self._fleet:
            used_bytes = (host.rss_bytes(member.child.pid) or 0) if member.is_busy else 0
            if used_bytes > self._hard_bytes and member.killed_for is None:
                logger.error(
                    "Worker %s uses %s, more than the hard limit of %s; killing it",
                    member.number,
                    format_size(used_bytes),
                    format_size(self._hard_bytes),
                )
                member.kill(CancelReason.MEMORY, member.last.key)
