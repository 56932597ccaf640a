"""Supervisor: what it tells of itself for metrics and health."""

from __future__ import annotations

from collections.abc import Sequence

from qml_mp.ipc.side import LoopReport, ServerReport, WorkerReport
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.workers.worker_process import WorkerProcess


class ServerReports:
    """Each is of the moment in which it is made, and costs no question to anybody."""

    def __init__(self, run: Run, *, loops: Sequence[Loop]) -> None:
        self._run = run
        self._loops = loops
        self._started_at = run.clock.now().timestamp()

    def make(self) -> ServerReport:
        run, counts = self._run, self._run.counts
        return ServerReport(
            at=run.clock.monotonic(),
            server_id=run.registration.id,
            started_at=self._started_at,
            wanted_workers=run.pool.size,
            workers=[_worker(each) for each in run.pool],
            loops=[_loop(each) for each in self._loops],
            is_stopping=run.stop.has_begun,
            is_paused=run.pool.paused,
            storage_fails=run.reaching.is_failing,
            trouble=run.registration.says.trouble,
            deaths=dict(counts.deaths),
            storage_errors={
                "supervisor": counts.storage_errors,
                "workers": run.worker_troubles.storage_errors,
            },
            lost_claims=counts.lost_claims + run.worker_troubles.lost_claims,
            firings=dict(counts.firings),
        )


def _worker(worker: WorkerProcess) -> WorkerReport:
    if not worker.is_ready:
        state = "booting"
    elif worker.leaving:
        state = "leaving"
    else:
        state = "busy" if worker.is_busy else "idle"
    return WorkerReport(number=worker.number, pid=worker.child.pid, state=state)


def _loop(loop: Loop) -> LoopReport:
    succeeded_at = loop.succeeded_at
    return LoopReport(
        name=loop.name,
        every_s=None if loop.interval is None else loop.interval.total_seconds(),
        succeeded_at=None if succeeded_at is None else succeeded_at.timestamp(),
        is_failing=loop.tries.is_failing,
    )
