"""Tests: servers told to stop at bad moments, under load, by one signal and by many (B5)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field, replace

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.values import BY_DEFAULT, JobFilter
from tests.nightly.ground import Ground, environment_of, fresh_ground, pause
from tests.nightly.judge import Kills
from tests.nightly.report import Row, median_and_p99
from tests.nightly.scenario import Task, judge_ground, nothing_left
from tests.processes.harness import Server, wait_until

_SHUTDOWN_S = 2.0
_SLACK_S = 20.0
_WORKERS = 3
_JOBS_A_STOP = 60
_LONGEST_S = 120.0
_SETTINGS = environment_of(
    {"shutdown_timeout": _SHUTDOWN_S, "term_grace": 0.7, "cancel_grace": 0.3, "max_crashes": 1000}
)
_MANNERS = ("once", "storm", "at any moment of the start", "mid-fork")
_CODES = {0, 6, -signal.SIGTERM}
"""In order, jobs killed at the deadline, and ended by the signal before its handler was in place."""


@dataclass(kw_only=True)
class _Stops:
    exit_ms: list[float] = field(default_factory=list)
    """From the first signal to the exit of the server."""
    broken: list[str] = field(default_factory=list)
    kills: Kills = field(default_factory=Kills)
    codes: dict[int, int] = field(default_factory=dict)


def run_stops(task: Task) -> Row:
    """Stop one server after the other; the next one goes on with what is left."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        stops, ids = _Stops(), []
        for turn in task.turns(task.count):
            ids += _load(ground)
            _stop_once(ground, _MANNERS[turn % len(_MANNERS)], stops)
        _run_what_is_left(ground, stops)
        findings = judge_ground(ground, expected=ids, kills=stops.kills)
        # A claim that a stop gives back, uncharged, is no offence: that is what was asked for.
        findings = replace(findings, unexplained=())
        codes = ", ".join(f"{count}x {code}" for code, count in sorted(stops.codes.items()))
        return task.row(
            done=len(stops.exit_ms), findings=findings, kills=stops.kills.count,
            figures=f"{median_and_p99('exit', stops.exit_ms)}, exit codes {codes}",
            broken=(*stops.broken, *nothing_left(ground)),
        )  # fmt: skip


def _run_what_is_left(ground: Ground, stops: _Stops) -> None:
    """By a last server, to see that nothing was lost."""
    _delete_the_stubborn(ground)
    last = ground.server("-w", str(_WORKERS), "--burst", **_SETTINGS).start(ready=None)
    try:
        if (code := last.wait(_LONGEST_S)) != 0:
            stops.broken.append(f"the last server exited with {code}: {last.log()[-500:]}")
    except subprocess.TimeoutExpired:
        left = [row for row in ground.audit.jobs() if not row.state.is_final]
        stops.broken.append(f"the last server does not end; left: {left}; {last.log()[-2000:]}")
        last.clean_up()


def _load(ground: Ground) -> list[str]:
    """Many small jobs, and now and then one that has to be killed; the ids of those that must succeed."""
    if ground.rng.random() < 0.3:
        ground.storage.enqueue(Job.new("stubborn"))
    waiting = ground.audit.unfinished()
    return ground.storage.enqueue_many(
        Job.new("unit", {"busy_s": round(ground.rng.uniform(0.001, 0.08), 3)})
        for _ in range(max(0, _JOBS_A_STOP - waiting))
    )


def _stop_once(ground: Ground, manner: str, stops: _Stops) -> None:
    server = ground.server("-w", str(_WORKERS), **_SETTINGS)
    if manner == "at any moment of the start":
        server.start(ready=None)
        pause(ground.rng.uniform(0.0, 1.2))
    else:
        ground.start(server, ready=1)
        pause(ground.rng.uniform(0.0, 0.3))
    if manner == "mid-fork":
        _kill_workers(ground, server, stops)
        pause(ground.rng.uniform(0.0, 0.03))
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    if manner == "storm":
        for _ in range(ground.rng.randint(1, 40)):
            server.signal(ground.rng.choice((signal.SIGTERM, signal.SIGINT)))
            pause(ground.rng.choice((0.0, 0.001, 0.01)))
    _judge_the_exit(ground, server, manner, began, stops)


def _kill_workers(ground: Ground, server: Server, stops: _Stops) -> None:
    """So that the supervisor forks when the signal comes."""
    for info in ground.workers(server):
        stops.kills.workers.add(info.id)
        stops.kills.count += 1
        with contextlib.suppress(ProcessLookupError):
            os.kill(info.process.pid, signal.SIGKILL)


def _judge_the_exit(ground: Ground, server: Server, manner: str, began: float, stops: _Stops) -> None:
    try:
        code = server.wait(_SHUTDOWN_S + _SLACK_S)
    except subprocess.TimeoutExpired:
        stops.broken.append(f"{manner}: the server never stopped: {server.log()[-1000:]}")
        server.clean_up()
        return
    stops.exit_ms.append((time.monotonic() - began) * 1000)
    stops.codes[code] = stops.codes.get(code, 0) + 1
    if code not in _CODES or (code < 0 and manner != "at any moment of the start"):
        stops.broken.append(f"{manner}: exit code {code}: {server.log()[-1000:]}")
    if code < 0:  # nobody was there to wait for the child that reads the app; the kernel ends it
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not ground.leftovers(), within_s=_LONGEST_S)
    stops.broken += [f"{manner}: {text}; {server.log()[-1000:]}" for text in nothing_left(ground)]


def _delete_the_stubborn(ground: Ground) -> None:
    """They end by being killed alone, and have served their purpose."""
    for row in ground.storage.list_servers():  # which had no time to give back what they had
        ground.storage.reclaim_server(row.id, silent_for=None)
    where = JobFilter(states=(StateName.ENQUEUED, StateName.AWAITING_RETRY), method="stubborn")
    for job in ground.storage.list_jobs(where, limit=1000).jobs:
        ground.storage.delete(job.id, reason="the test is over", retention=BY_DEFAULT)
