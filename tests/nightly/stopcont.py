"""Tests: workers and supervisors that are stopped, declared dead by a peer, and go on (B8)."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

from qml_mp.core.job import Job
from qml_mp.errors import StorageUnavailable
from tests.nightly.ground import Ground, JournalTail, environment_of, fresh_ground
from tests.nightly.judge import Findings, Kills
from tests.nightly.report import Row, median_and_p99
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.processes.harness import Server, is_stopped, wait_until

_LOST = re.compile(r"The claim of job (\S+) was lost")
_DECLARED_DEAD = "A peer declared this server dead"
_END_OF_LOG_BYTES = 64 * 1024
_LONGEST_S = 60.0
_HEARTBEAT = environment_of(
    {"enable_heartbeat": "yes", "heartbeat_interval": 0.2, "dead_server_timeout": 0.4, "max_crashes": 1000}
)


def run_stopped_workers(task: Task) -> Row:
    """STOP a busy worker, give its claim to others as a peer would, CONT: its outcome is refused."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        server = ground.start(ground.server("-w", "2", **environment_of({"max_crashes": 1000})), ready=2)
        tail, ids, kills, counted_ms = JournalTail(ground), [], Kills(), []
        for _ in task.turns(task.count):
            job_id, took_ms = _stop_a_worker(ground, server, tail, kills)
            ids.append(job_id)
            counted_ms.append(took_ms)
        broken = [] if server.stop() == 0 else ["the server did not stop with 0"]
        findings = _without_overlaps(judge_ground(ground, expected=ids, kills=kills))
        refused = _LOST.findall(server.log())
        if sorted(refused) != sorted(ids):
            broken.append(f"{len(ids)} stale outcomes, {len(refused)} counted")
        return task.row(
            done=len(ids), findings=findings, kills=0,
            figures=f"{len(refused)} refused and counted, {median_and_p99('after CONT', counted_ms)}",
            broken=(*broken, *nothing_left(ground)),
        )  # fmt: skip


def _stop_a_worker(ground: Ground, server: Server, tail: JournalTail, kills: Kills) -> tuple[str, float]:
    """The job of this cycle, and how long after CONT its refusal was counted."""
    job_id = ground.storage.enqueue(Job.new("gated", {}))
    first = wait_until(lambda: tail.start_of(job_id, 1), within_s=_LONGEST_S, what="the first run")
    (claim,) = ground.storage.claims()
    kills.workers.add(claim.worker_id)
    with _stopped(first.pid):
        _reclaim(ground)
        ground.open_gate(job_id)
        if ground.rng.random() < 0.5:  # the other worker is done with it, or has it still to do
            wait_until(lambda: not ground.audit.unfinished(), within_s=_LONGEST_S, what="the second run")
    went_on = time.monotonic()
    wait_until(lambda: job_id in _refused(server), within_s=_LONGEST_S, what="the refusal")
    took_ms = (time.monotonic() - went_on) * 1000
    wait_until(lambda: not ground.audit.unfinished(), within_s=_LONGEST_S, what="the second run")
    return job_id, took_ms


def _reclaim(ground: Ground) -> None:
    """Give back every claim, as the sweep of a peer that takes the owner for dead."""
    count = ground.storage.requeue_stranded_jobs(ground.storage.now() + timedelta(hours=1))
    assert count == 1, f"{count} claims were given back"


def run_stopped_supervisors(task: Task) -> Row:
    """STOP a supervisor, reclaim from its server as a peer would, CONT: it ends its workers and goes on."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        server = ground.start(ground.server("-w", "2", **_HEARTBEAT), ready=2)
        tail, ids, kills = JournalTail(ground), [], Kills()
        stale: set[str] = set()
        broken = []
        for turn in task.turns(task.count):
            job_id, wrote = _stop_the_supervisor(ground, server, tail, kills, turn)
            ids.append(job_id)
            stale |= {job_id} if wrote else set()
        if _noticed(server) != len(ids):
            broken.append(f"{len(ids)} reclaims, {_noticed(server)} noticed")
        if (code := server.stop()) != 0:
            broken.append(f"the server exited with {code}: {server.log()[-500:]}")
        refused = set(_LOST.findall(server.log()))
        if missing := stale - refused:
            broken.append(f"{len(missing)} stale outcomes were not counted")
        # Whatever ran under a declared death was taken from its worker by that death.
        findings = _without_overlaps(judge_ground(ground, expected=ids, kills=kills))
        return task.row(
            done=len(ids), findings=findings, kills=0,
            figures=f"{len(refused)} outcomes refused and counted, every supervisor noticed",
            broken=(*broken, *nothing_left(ground)),
        )  # fmt: skip


def _stop_the_supervisor(
    ground: Ground, server: Server, tail: JournalTail, kills: Kills, turn: int
) -> tuple[str, bool]:
    """The job of this cycle, and whether its first worker came to write its outcome."""
    server_id = wait_until(lambda: _whole(ground, server), within_s=_LONGEST_S, what="two workers")
    kills.workers |= {info.id for info in ground.workers(server)}
    job_id = ground.storage.enqueue(Job.new("gated", {}))
    wait_until(lambda: tail.start_of(job_id, 1), within_s=_LONGEST_S, what="the first run")
    writes = ground.rng.random() < 0.5
    with _stopped_and_reclaimed(ground, server, server_id):
        if writes:  # its worker ends the job while nobody supervises it
            ground.open_gate(job_id)
            wait_until(lambda: job_id in _refused(server), within_s=_LONGEST_S, what="the refusal")
    wait_until(lambda: _noticed(server) > turn, within_s=_LONGEST_S, what="the end of the old run")
    ground.open_gate(job_id)
    wait_until(
        lambda: not ground.audit.unfinished(), within_s=_LONGEST_S, what=f"the job; {server.log()[-2000:]}"
    )
    return job_id, writes


def _whole(ground: Ground, server: Server) -> str | None:
    """The id of the server's run, once both of its workers are there."""
    workers = ground.workers(server)
    return workers[0].server_id if len(workers) == 2 else None


def _without_overlaps(findings: Findings) -> Findings:
    """Two runs at once are what these scenarios bring about; the fence is what they look at."""
    return replace(findings, overlapping=())


def _noticed(server: Server) -> int:
    return server.log().count(_DECLARED_DEAD)


def _refused(server: Server) -> set[str]:
    """The jobs whose stale outcomes were refused and counted, from the end of the log."""
    with (server.folder / "server.log").open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - _END_OF_LOG_BYTES))
        return set(_LOST.findall(log.read().decode(errors="replace")))


@contextlib.contextmanager
def _stopped_and_reclaimed(ground: Ground, server: Server, server_id: str) -> Iterator[None]:
    """Stopped while it holds the lock of an SQLite file, a process keeps everybody out: then again."""
    while True:
        with _stopped(server.pid):
            try:
                ground.impatient.reclaim_server(server_id, silent_for=None)
            except StorageUnavailable:
                continue
            yield
            return


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: is_stopped(pid), within_s=_LONGEST_S, what=f"the stop of {pid}")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
