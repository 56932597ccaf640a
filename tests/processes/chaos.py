"""Tests: many jobs on a real server while workers are killed at random, and the judgement afterwards.

`scripts/soak` runs it long, the suite runs it short. The judge is the journal that the jobs write.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from datetime import timedelta

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.protocol import Storage
from tests.processes.harness import Server, is_gone, wait_until
from tests.processes.journal import Line, overlapping_runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the judge found; `problems` is empty when all that was promised holds."""

    jobs: int
    kills: int
    runs: int
    seconds: float
    problems: tuple[str, ...]


def run_under_fire(
    server: Server,
    storage: Storage,
    *,
    jobs: int,
    workers: int,
    kill_every: timedelta,
    seed: int,
    busy_s: float,
) -> Verdict:
    """Enqueue the jobs, kill a random worker at each interval until all have ended, stop, and judge.

    The crash budget of the server must be large: a job is innocent of the kills that hit it.
    """
    rng = random.Random(seed)
    ids = storage.enqueue_many(Job.new("quick", {"busy_s": busy_s}) for _ in range(jobs))
    server.start(ready=None)
    began = time.monotonic()
    deaths_ns: dict[int, int] = {}
    while not _all_ended(storage):
        _pass_time(kill_every)
        _kill_one(server, rng, deaths_ns)
        if time.monotonic() - began > 600:
            raise AssertionError(f"not done after 600 s: {storage.job_counts()}\n{server.log()[-3000:]}")
    seconds = time.monotonic() - began
    pids = list(server.worker_pids().values())
    code = server.stop()
    lines = server.journal()
    return Verdict(
        jobs=jobs,
        kills=len(deaths_ns),
        runs=sum(line.what == "start" for line in lines),
        seconds=seconds,
        problems=tuple(_problems(storage, ids, lines, deaths_ns, code, pids)),
    )


def _pass_time(pause: timedelta) -> None:
    """Between two kills: this is the load itself, not a wait for something to come about."""
    until = time.monotonic() + pause.total_seconds()
    wait_until(lambda: time.monotonic() >= until, what="the next kill")


def _all_ended(storage: Storage) -> bool:
    return all(count == 0 for state, count in storage.job_counts().items() if not state.is_final)


def _kill_one(server: Server, rng: random.Random, deaths_ns: dict[int, int]) -> None:
    pids = sorted(server.worker_pids().values())
    if not pids:
        return
    victim = rng.choice(pids)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
        deaths_ns[victim] = time.monotonic_ns()


def _problems(
    storage: Storage, ids: list[str], lines: list[Line], deaths_ns: dict[int, int], code: int, pids: list[int]
) -> list[str]:
    problems = []
    counts = storage.job_counts()
    if counts[StateName.SUCCEEDED] != len(ids):
        problems.append(f"not all jobs succeeded: {counts}")
    ended = Counter(line.job_id for line in lines if line.what == "end")
    problems += [f"job {job_id} never came to its end" for job_id in ids if not ended[job_id]]
    problems += [f"two runs of {second.job_id} overlap" for _, second in overlapping_runs(lines, deaths_ns)]
    problems += [f"claim {key} ran twice" for key, count in _starts(lines).items() if count > 1]
    if storage.claims() or storage.list_servers() or storage.list_workers():
        problems.append("claims or registry rows are left")
    problems += [f"worker {pid} is left running" for pid in pids if not is_gone(pid)]
    if code != 0:
        problems.append(f"the server exited with {code}")
    return problems


def _starts(lines: list[Line]) -> Counter[tuple[str, int]]:
    return Counter((line.job_id, line.claim_seq) for line in lines if line.what == "start")
