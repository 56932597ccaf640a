"""Tests: one program waits for very many jobs that end one after the other: what it asks of the storage, and
how soon it sees a result."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import closing
from datetime import timedelta

from qml_mp import QmlApp
from qml_mp.core.job import Job
from qml_mp.storage.waits import EndedJobs
from tests.soak.ground import Ground, fresh_ground
from tests.soak.report import Row, median_and_p99, quantile
from tests.soak.scenario import Task, nothing_left
from tests.storage.helpers import patient_url

_WORKERS = 2
_PER_S = 50
_LONGEST = timedelta(seconds=120)
_MOST_MS = {"postgres": 20.0}
"""From the commit, p99. On SQLite it depends on the disk."""
_MOST_STATEMENTS_PER_S = {"postgres": 2.0}
"""Beside what it is woken for. On SQLite any commit wakes, and each look is about all."""


def run_waiting(task: Task) -> Row:
    """As many handles as the count says, in one `wait_all`, and again in one `as_completed`."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        server = ground.start(ground.server("-w", str(_WORKERS)), ready=_WORKERS)
        with closing(QmlApp(patient_url(ground.url))) as app:
            statements = _Statements(app)
            handles = app.enqueue_many(_jobs(task.count))
            results = app.wait_all(handles, _LONGEST)
            late_ms = _late_ms(app, task.count)
            per_s = statements.per_second()
        server.stop()
        claims = {row.id: row.claim_seq for row in ground.audit.jobs()}  # a busy machine makes one go back
        wanted = [claims[handle.id] for handle in handles]
        missed = []
        if per_s > _MOST_STATEMENTS_PER_S.get(task.backend, float("inf")):
            missed.append(f"{per_s:.2f} statements a second")
        if quantile(late_ms, 0.99) > _MOST_MS.get(task.backend, float("inf")):
            missed.append(f"results were seen {quantile(late_ms, 0.99):.1f} ms late")
        return task.row(
            done=len(results),
            figures=f"{median_and_p99('seen after', late_ms)}; {per_s:.2f} statements/s and "
            f"{statements.told} told",
            broken=(*_wrong(results, wanted, late_ms), *_waits_left(ground), *nothing_left(ground)),
            missed=tuple(missed),
        )


def _jobs(count: int) -> list[Job]:
    """Due one after the other."""
    first = timedelta(seconds=0.5)
    return [Job.new("unit", {}, delay=first + timedelta(seconds=n / _PER_S)) for n in range(count)]


def _late_ms(app: QmlApp, count: int) -> list[float]:
    """How much later each end was seen than it was written, by the one clock of this machine."""
    late_ms = []
    for handle in app.as_completed(app.enqueue_many(_jobs(count)), _LONGEST):
        seen_at = time.time()
        finished_at = handle.job().finished_at
        assert finished_at is not None
        late_ms.append(1000 * (seen_at - finished_at.timestamp()))
    return late_ms


def _wrong(results: Sequence[object], wanted: list[int], late_ms: list[float]) -> list[str]:
    is_right = list(results) == wanted and len(late_ms) == len(wanted)
    return [] if is_right else ["results are missing, or wrong"]


def _waits_left(ground: Ground) -> list[str]:
    """Rows of waits that were ended."""
    if ground.backend == "sqlite":
        return []
    left = ground.storage._db.read("counting waits", "SELECT count(*) AS waits FROM {s}.waits")
    return [f"{left[0]['waits']} waits are left"] if left[0]["waits"] else []


class _Statements:
    """What a waiting app asks of its storage, beside what it is woken for."""

    def __init__(self, app: QmlApp) -> None:
        storage = app.storage
        self.told = self._count = 0
        self._began = time.monotonic()
        ended_jobs, begin_wait, end_wait = storage.ended_jobs, storage.begin_wait, storage.end_wait
        self._open = 0

        def look(job_ids: Collection[str]) -> EndedJobs:
            if len(job_ids) < self._open:  # about what is said to have ended, and not about all
                self.told += 1
            else:
                self._count += 1
            ended = ended_jobs(job_ids)
            self._open = max(self._open, len(job_ids)) - len(ended.jobs)
            return ended

        def begin(waiter: str, job_ids: Collection[str], *, ttl: timedelta) -> None:
            self._count += 1
            begin_wait(waiter, job_ids, ttl=ttl)

        def end(waiter: str, job_ids: Collection[str]) -> None:
            self._count += 1
            end_wait(waiter, job_ids)

        storage.ended_jobs, storage.begin_wait, storage.end_wait = look, begin, end  # type: ignore[method-assign]

    def per_second(self) -> float:
        return self._count / (time.monotonic() - self._began)
