"""Supervisor: the end of a run: when it began, what it has time for, and until when.

Jobs have the time that was promised. Storage has no more than that: a database that is slow or silent
must not keep an idle server.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from qml_mp.clock import Clock
from qml_mp.supervisor.loops.settlement import Chores
from qml_mp.supervisor.workers.ladder import Graces, kill_now
from qml_mp.supervisor.workers.pool import Fleet
from qml_mp.supervisor.workers.pushing import Pusher
from qml_mp.units import format_duration

logger = logging.getLogger(__name__)

_LEAVING_S = 0.4  # what leaving storage may take after the last worker is gone, whatever came before
_IDLE_LEAVING_S = 1.4  # and after the last job, as long as the shutdown's own deadline allows


class Stop:
    """Whether the server stops, and the instants that follow from it, on the monotonic clock."""

    def __init__(
        self,
        *,
        fleet: Fleet,
        pusher: Pusher,
        chores: Chores,
        graces: Graces,
        storage_is_down: Callable[[], bool],
        clock: Clock,
    ) -> None:
        self._fleet = fleet
        self._pusher = pusher
        self._chores = chores
        self._graces = graces
        self._storage_is_down = storage_is_down
        self._clock = clock
        self._leave_by: float | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the server was told to stop."""
        return self._pusher.stopping is not None

    @property
    def is_complete(self) -> bool:
        """Whether all workers are gone, and none comes any more."""
        return self.has_begun and not len(self._fleet)

    def begin(self, *, now: bool, why: str) -> None:
        """Begin to stop, or with `now` end it: kill what runs and give its jobs back."""
        instant = self._clock.monotonic()
        self._chores.spares_empty_handed = True
        if now:
            logger.warning("Stopping now (%s)", why)
            self._pusher.stopping = kill_now(now=instant)
        elif not self.has_begun:
            allowed = format_duration(self._graces.shutdown_timeout)
            logger.info("Stopping (%s): running jobs have %s", why, allowed)
            self._pusher.stopping = self._graces.shutdown(stopped=instant)

    @property
    def has_time_for_storage(self) -> bool:
        """Without a job in hand a stop has time for leaving storage alone."""
        return not self.has_begun or any(member.is_busy for member in self._fleet)

    def give_up_at(self) -> float:
        """From when on nothing is sent to storage and no reply is waited for."""
        stopping = self._pusher.stopping
        if self._leave_by is not None:
            return self._leave_by
        if stopping is None:
            return float("inf")
        if len(self._fleet):
            return stopping.kill_at + _LEAVING_S
        patience_s = _LEAVING_S if self._storage_is_down() else _IDLE_LEAVING_S
        last_job_at = max(stopping.ask_at, self._pusher.busy_at)
        by = min(stopping.kill_at + _LEAVING_S, last_job_at + patience_s)
        return self._leave_within_s(max(_LEAVING_S, by - self._clock.monotonic()))

    def leave_by(self) -> float:
        """`give_up_at`, for a run that ends now, for whatever reason."""
        return self.give_up_at() if self.has_begun else self._leave_within_s(_LEAVING_S)

    def _leave_within_s(self, seconds: float) -> float:
        """From now on that is the instant: it does not move with each look."""
        self._leave_by = self._clock.monotonic() + seconds
        return self._leave_by
