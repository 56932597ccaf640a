"""Supervisor: the end of a run: when it began, what it has time for, and until when.

Jobs have the time that was promised. Storage has no more than that: a database that is slow or silent
must not keep an idle server.
"""

from __future__ import annotations

from qml_mp.clock import Clock
from qml_mp.errors import ConfigurationError, WorkerBootError
from qml_mp.events.emitter import Emitter
from qml_mp.events.facts import ServerStopping
from qml_mp.events.retrying import Retrying
from qml_mp.processing.cancel import CancelReason
from qml_mp.supervisor.workers.ladder import Graces, Plan
from qml_mp.supervisor.workers.pool import WorkerPool

_LEAVING_S = 0.4  # what leaving storage may take after the last worker is gone, whatever came before
_BUSY_LEAVING_S = 0.8  # the same while storage answers: on a busy machine that takes a supervisor its time
_MOST_LEAVING_S = 3.0  # however often that begins anew
_IDLE_LEAVING_S = 1.4  # and after the last job, as long as the shutdown's own deadline allows


class Stop:
    """Whether the server stops, and the instants that follow from it, on the monotonic clock."""

    def __init__(
        self, *, pool: WorkerPool, graces: Graces, reaching: Retrying, clock: Clock, events: Emitter
    ) -> None:
        """`reaching` is how storage could be reached so far."""
        self._pool = pool
        self._graces = graces
        self._reaching = reaching
        self._clock = clock
        self._events = events
        self.plan: Plan | None = None
        """The ladder for every job that runs; None: the server was not told to stop."""
        self.error: WorkerBootError | ConfigurationError | None = None
        """Why the server cannot run."""
        self._leave_by: float | None = None
        self._leaves_since = 0.0

    @property
    def has_begun(self) -> bool:
        return self.plan is not None

    @property
    def is_complete(self) -> bool:
        """Whether all workers are gone, but for those that cannot be killed, and none comes any more."""
        return self.has_begun and all(worker.is_lost for worker in self._pool)

    def begin(
        self, *, now: bool, why: str, error: WorkerBootError | ConfigurationError | None = None
    ) -> None:
        """Begin to stop, or with `now` end it: kill what runs and give its jobs back."""
        self.error = self.error or error
        self._pool.boots.is_over = True
        instant = self._clock.monotonic()
        if now:
            self._events.emit(ServerStopping(why=why, allowed=None))
            self.plan = Plan(
                reason=CancelReason.SHUTDOWN, ask_at=instant, interrupt_at=instant, kill_at=instant
            )
        elif not self.has_begun:
            self._events.emit(ServerStopping(why=why, allowed=self._graces.shutdown_timeout))
            self.plan = self._graces.shutdown(stopped=instant)

    def has_time_for_storage(self) -> bool:
        """Without a job in hand a stop has time for leaving storage alone."""
        return not self.has_begun or any(worker.is_busy for worker in self._pool)

    def give_up_at(self) -> float:
        """From when on nothing is sent to storage and no reply is waited for. Of a stop, the first look at
        this without workers fixes it; only `renew_leaving` moves it then."""
        if self._leave_by is not None:
            return self._leave_by
        if self.plan is None:
            return float("inf")
        if len(self._pool):
            return self.plan.kill_at + _LEAVING_S
        patience_s = _LEAVING_S if self._reaching.is_failing else _IDLE_LEAVING_S
        least_s = _LEAVING_S if self._reaching.is_failing else _BUSY_LEAVING_S
        last_job_at = max(self.plan.ask_at, self._pool.busy_at)
        by = min(self.plan.kill_at + _LEAVING_S, last_job_at + patience_s)
        return self._leave_within_s(max(least_s, by - self._clock.monotonic()))

    def begin_leaving(self) -> None:
        """The run ends now, for whatever reason: an instant to `give_up_at` is fixed."""
        if self.give_up_at() == float("inf"):  # an error ends it, nobody has told it to stop
            self._leave_within_s(_LEAVING_S)

    def renew_leaving(self) -> None:
        """Storage has answered, or is asked first now: what is left may take as long again. On a busy machine
        each reply takes its time, and so does this process."""
        if self._leave_by is not None and not self._reaching.is_failing:
            latest = self._leaves_since + _MOST_LEAVING_S
            renewed = min(self._clock.monotonic() + _BUSY_LEAVING_S, latest)
            self._leave_by = max(self._leave_by, renewed)

    def _leave_within_s(self, seconds: float) -> float:
        """From now on that is the instant: it does not move with each look."""
        self._leaves_since = self._clock.monotonic()
        self._leave_by = self._leaves_since + seconds
        return self._leave_by
