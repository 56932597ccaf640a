"""Tests: all of PostgreSQL is stopped under load for longer than any of our limits, and goes on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg

from qml_mp.core.job import Job
from tests.postgres_cluster import throwaway_cluster
from tests.processes.harness import wait_until
from tests.soak.ground import Ground, JournalTail, descendants, environment_of, fresh_ground, pause
from tests.soak.judge import Kills
from tests.soak.report import Row
from tests.soak.scenario import Task, judge_ground, nothing_left

_FREEZE_S = 45.0
_LONGEST_S = 120.0
_SETTINGS = environment_of({"max_crashes": 1, "polling_interval": 0.2})


def run_freeze(task: Task) -> Row:
    """STOP every process of a PostgreSQL server in the middle of the jobs, CONT: each job runs once,
    and none stays with a worker that does not know of it."""
    with (
        throwaway_cluster() as url,
        fresh_ground("postgres", url, seed=task.seed) as ground,
    ):
        server = ground.start(ground.server("-w", "4", **_SETTINGS), ready=4)
        tail = JournalTail(ground)
        ids = ground.storage.enqueue_many(Job.new("unit", {"busy_s": 0.004}) for _ in range(task.count))
        wait_until(lambda: len(tail.lines()) > task.count // 4, within_s=_LONGEST_S, what="work")
        with frozen(url):
            pause(_FREEZE_S * task.pace)
        broken = _wait_for_the_end(ground)
        if server.stop() != 0:
            broken.append("the server did not stop with 0")
        runs = sum(line.what == "start" for line in tail.lines())
        if runs != len(ids):
            broken.append(f"{len(ids)} jobs, {runs} runs")
        findings = judge_ground(ground, expected=ids, kills=Kills())
        return task.row(
            done=len(ids), findings=findings, figures=f"{runs} runs", kills=0,
            broken=(*broken, *nothing_left(ground)),
        )  # fmt: skip


def _wait_for_the_end(ground: Ground) -> list[str]:
    """What is not over long after the server goes on."""
    with contextlib.suppress(AssertionError):  # the rows themselves are told
        wait_until(lambda: not ground.audit.unfinished(), within_s=_LONGEST_S)
    left = [row for row in ground.audit.jobs() if not row.state.is_final]
    return [f"job {row.id} is {row.state} for ever" for row in left]


@contextlib.contextmanager
def frozen(url: str) -> Iterator[None]:
    """SIGSTOP every process of the server at the URL, and SIGCONT at the end."""
    postmaster = int(Path(_data_directory(url), "postmaster.pid").read_text().split()[0])
    stopped = [postmaster]
    os.kill(postmaster, signal.SIGSTOP)  # first, so that it starts no other
    try:
        for pid in descendants(postmaster):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        yield
    finally:
        for pid in reversed(stopped):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _data_directory(url: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    assert row is not None
    return str(row[0])
