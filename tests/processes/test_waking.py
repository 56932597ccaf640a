"""Tests: who is woken for a job. Nobody polls here: a worker that is not woken never looks."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind, Rate
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, stop_between_writes, wait_for_state, wait_until
from tests.statement_trace import TRACE, statements
from tests.storage.helpers import set_limit

MakeServer = Callable[..., Server]

NEVER = {"QML_MP_POLLING_INTERVAL": "1h"}
_STAYS_SO = 30  # looks in a row
_TRIES = 10


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """Where the processes of `traced` write down their statements."""
    traces = tmp_path / "traces"
    traces.mkdir()
    return traces


def traced(server: MakeServer, traces: Path, *, workers: int) -> Server:
    """A server of so many workers, which do not look by themselves."""
    one = server("-w", str(workers), **NEVER, **{TRACE: str(traces)})
    one.program = ("-m", "tests.statement_trace")
    return one.start(ready=workers)


def test_one_job_wakes_one_worker(server: MakeServer, storage: Storage, traces: Path) -> None:
    one = traced(server, traces, workers=4)
    woken = []

    for _ in range(_TRIES):  # one that gets no processor for long is passed over
        before = _when_idle(traces, one)
        wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
        woken.append(len(_when_idle(traces, one) - before))
        if woken[-1] == 1:
            break

    assert woken[-1] == 1, woken
    assert one.stop() == 0


def _when_idle(traces: Path, one: Server) -> Counter[int]:
    """How many statements each worker has sent, once there come no more."""
    seen: list[Counter[int]] = []

    def settled() -> Counter[int] | None:
        sent = statements(traces)
        seen.append(Counter({pid: len(sent.get(pid, ())) for pid in one.worker_pids().values()}))
        newest = seen[-_STAYS_SO:]
        return newest[0] if len(newest) == _STAYS_SO and all(each == newest[0] for each in newest) else None

    return wait_until(settled, what="workers that are idle")


def test_jobs_that_come_one_by_one_run_beside_each_other(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "4", **NEVER).start(ready=4)

    for _ in range(4):
        enqueue(storage, "heed")

    wait_until(lambda: len(one.journal()) == 4, what="four jobs that run")
    assert one.stop() == 0


def test_a_worker_that_does_not_look_when_it_is_woken_keeps_no_job_from_the_others(
    server: MakeServer, storage: Storage, traces: Path
) -> None:
    one = traced(server, traces, workers=2)

    for pid in one.worker_pids().values():
        _when_idle(traces, one)  # in the middle of a look it may be stopped with the job in hand
        stop_between_writes(storage, pid)
        wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)
        os.kill(pid, signal.SIGCONT)

    assert one.stop() == 0


def test_a_job_that_another_process_schedules_for_an_earlier_instant_does_not_wait_for_a_poll(
    server: MakeServer, storage: Storage
) -> None:
    storage.enqueue(Job.new("quick", at=datetime.now(UTC) + timedelta(hours=1)))
    one = server("-w", "1", **NEVER, QML_MP_SCHEDULER_POLL_INTERVAL="1h").start()
    wait_for_state(storage, enqueue(storage, "quick"), StateName.SUCCEEDED)

    job_id = storage.enqueue(Job.new("quick", at=datetime.now(UTC) + timedelta(seconds=0.5)))

    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert one.stop() == 0


@pytest.mark.nightly
def test_a_server_all_of_whose_workers_were_busy_knows_when_a_rate_opens(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", **NEVER).start(ready=1)
    set_limit(storage, LimitKind.METHOD, "quick", rate=Rate(1, timedelta(seconds=1)))
    enqueue(storage, "nap", seconds=2)
    wait_until(one.journal, what="the nap")

    ids = [enqueue(storage, "quick") for _ in range(2)]

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert one.stop() == 0
