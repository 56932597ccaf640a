"""Tests: 50,000 failed jobs retried by one command, while workers run them and half fail again (E2)."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch
from tests.processes.harness import ROOT, wait_until
from tests.soak.apps import fails_again
from tests.soak.ground import Ground, fresh_ground
from tests.soak.report import Row
from tests.soak.scenario import Task, nothing_left
from tests.storage.helpers import patient_url

_WORKERS = 2
_AT_A_TIME = 100
_LIMIT_S, _OF_JOBS = 10.0, 50_000
_LONGEST_S = 600.0


def run_bulk(task: Task) -> Row:
    """Each job has to be retried once and no more, however soon it has failed again, and run."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        ids = _fail(ground.storage, task.count)
        server = ground.start(ground.server("-w", str(_WORKERS)), ready=_WORKERS)
        began = time.monotonic()
        told = _retry(ground)
        took_s = time.monotonic() - began
        wait_until(lambda: not ground.audit.unfinished(), within_s=_LONGEST_S, what="the end of all jobs")
        code = server.stop()
        broken = [] if code == 0 else [f"the server did not stop with 0, but {code}"]
        broken += [] if told == {"matched": task.count, "changed": task.count, "left": 0} else [str(told)]
        broken += _offences(ground, ids)
        limit_s = _LIMIT_S * max(1.0, task.count / _OF_JOBS)
        return task.row(
            done=len(ids),
            figures=f"{took_s:.1f} s for {told['changed']} jobs",
            broken=(*broken[:10], *nothing_left(ground)),
            missed=() if took_s <= limit_s else (f"it took {took_s:.1f} s",),
        )


def _fail(storage: Storage, count: int) -> list[str]:
    ids = storage.enqueue_many(Job.new("brittle") for _ in range(count))
    which = Fetch(worker_id="before", server_id="before#1", queues=())
    error = ErrorInfo(type="ValueError", message="no", traceback='  File "tasks.py", line 1, in brittle\n')
    held = storage.exchange((), fetch=which, limit=_AT_A_TIME, retention=BY_DEFAULT).claims
    while held:
        ended = [(claim, Failure(error=error)) for claim in held]
        held = storage.exchange(ended, fetch=which, limit=_AT_A_TIME, retention=BY_DEFAULT).claims
    return ids


def _retry(ground: Ground) -> dict[str, int]:
    url = patient_url(ground.url)
    command = ["-m", "qml_mp", "--url", url, "jobs", "retry", "--state", "failed", "--yes", "--json"]
    ended = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    told: dict[str, int] = json.loads(ended.stdout)
    return told


def _offences(ground: Ground, ids: list[str]) -> Iterator[str]:
    retried = Counter(
        change.job_id
        for change in ground.audit.transitions()
        if (change.old, change.new) == (StateName.FAILED, StateName.ENQUEUED)
    )
    runs = Counter(line.job_id for line in ground.journal() if line.what == "start")
    rows = {row.id: row for row in ground.audit.jobs()}
    for job_id in ids:
        wanted = StateName.FAILED if fails_again(job_id) else StateName.SUCCEEDED
        if rows[job_id].state is not wanted:
            yield f"job {job_id} is {rows[job_id].state}, not {wanted}"
        if (retried[job_id], runs[job_id]) != (1, 1):
            yield f"job {job_id} was retried {retried[job_id]} times and ran {runs[job_id]} times"
