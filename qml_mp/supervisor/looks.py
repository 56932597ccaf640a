"""Supervisor: waits until somebody wants a turn, and looks at running jobs meanwhile.

What is held behind a job is looked at some thirty times a second. A turn of everybody takes several times as
long as such a look, and the jobs that run meanwhile need the processor. Nobody else is kept waiting: what the
other parts wait for is readable, has its instant, or shows at their own turns alone.
"""

from __future__ import annotations

from qml_mp.supervisor.loops.held_claims import HeldClaims
from qml_mp.supervisor.part import Parts
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for


class Looks:
    """Between two turns of everybody."""

    def __init__(self, run: Run, *, held: HeldClaims, limits: Parts) -> None:
        """`limits` are `MemoryWatch` and `Pusher`: what workers say may make these due sooner. They and
        `held` are among `run.all_parts`."""
        self._all_parts = run.all_parts
        self._pool = run.pool
        self._stop = run.stop
        self._clock = run.clock
        self._held = held
        self._limits = limits

    def wait(self) -> None:
        """Until a part wants a turn that is not looked after here."""
        fds, others_at = self._all_parts.fds(), self._all_parts.next_at(besides=self._held)
        while not wait_for(fds, until=min(others_at, self._held.next_at())):
            if self._clock.monotonic() >= others_at or self._look():
                return
            others_at = min(others_at, self._limits.next_at())

    def _look(self) -> bool:
        """Whether somebody else wants a turn now."""
        watched = self._held.fds()
        has_news = self._read_slots()
        self._held.turn()
        self._limits.turn()
        wants_more = self._held.has_work() or self._held.fds() != watched
        return has_news or wants_more or self._stop.has_begun

    def _read_slots(self) -> bool:
        """Whether one says more than that its worker goes from job to job."""
        now, has_news = self._clock.monotonic(), False
        for worker in self._pool:
            was_busy = worker.is_busy
            has_news = worker.look(now).used_up or worker.is_busy is not was_busy or has_news
        return has_news
