"""Supervisor: what it tells of itself for metrics and health."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice

from qml_mp.core.history import SeriesKey
from qml_mp.ipc.side import EndsReport, LoopReport, ServerReport, WorkerReport
from qml_mp.supervisor.loops.loop import AT_ONCE, Loop
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.death import CAUSES
from qml_mp.supervisor.workers.worker_process import WorkerProcess

_MOST_ENDS = 100
"""Told in one report, so that it takes a turn no more than a millisecond; the others are told in the next
ones."""


class ServerReports:
    """Each is of the moment in which it is made, and costs no question to anybody."""

    def __init__(self, run: Run, *, loops: Sequence[Loop]) -> None:
        self._run = run
        self._loops = loops
        self._started_at = run.clock.now().timestamp()
        self._told: dict[SeriesKey, Sequence[int]] = {}
        """What was told last of each; who was told longest ago stands first."""

    def begin(self) -> None:
        """The next one is the first that its reader hears."""
        self._told.clear()

    def make(self) -> ServerReport:
        run, counts = self._run, self._run.counts
        now = run.clock.monotonic()
        return ServerReport(
            at=now,
            server_id=run.registration.id,
            started_at=self._started_at,
            wanted_workers=run.pool.size,
            workers=[_worker(each) for each in run.pool],
            loops=[_loop(each, now) for each in self._loops],
            is_stopping=run.stop.has_begun,
            is_paused=run.pool.paused,
            storage_fails=run.reaching.is_failing,
            trouble=run.registration.says.trouble,
            deaths={**dict.fromkeys(CAUSES, 0), **counts.deaths},
            storage_errors={
                "supervisor": counts.storage_errors,
                "workers": run.worker_troubles.storage_errors,
            },
            lost_claims=counts.lost_claims + run.worker_troubles.lost_claims,
            firings=dict(counts.firings),
            ends=self._ends(),
            has_told_all_ends=len(self._told) == len(run.pool.totals.numbers),
        )

    def _ends(self) -> list[EndsReport]:
        """First those that were told longest ago: where many grow all the time, each has its turn. Numbers
        that have grown are another object."""
        self._run.pool.totals.look()
        numbers = self._run.pool.totals.numbers
        new = () if len(numbers) == len(self._told) else (key for key in numbers if key not in self._told)
        grown = (key for key, told in self._told.items() if told is not numbers[key])
        ends = {key: numbers[key] for key in islice(chain(new, grown), _MOST_ENDS)}
        for key, now in ends.items():
            self._told.pop(key, None)
            self._told[key] = now
        return [
            EndsReport(method=key.method, queue=key.queue, ending=str(key.ending), numbers=numbers)
            for key, numbers in ends.items()
        ]


def _worker(worker: WorkerProcess) -> WorkerReport:
    if not worker.is_ready:
        state = "booting"
    elif worker.leaving:
        state = "leaving"
    else:
        state = "busy" if worker.is_busy else "idle"
    return WorkerReport(number=worker.number, pid=worker.child.pid, state=state)


def _loop(loop: Loop, now: float) -> LoopReport:
    succeeded_at, due_at = loop.succeeded_at, loop.due_at()
    return LoopReport(
        name=loop.name,
        succeeded_at=None if succeeded_at is None else succeeded_at.timestamp(),
        due_since=due_at if AT_ONCE < due_at <= now else None,
        failing_since=loop.failing_since,
    )
