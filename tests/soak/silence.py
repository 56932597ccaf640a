"""Tests: what must keep its time while the database is silent, slow or locked (F3).

Per round and fault: the kill of a job past its limit, the exit of an idle server, the exit of one
whose job must be killed at the deadline, and the fork of a worker in a dead one's place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable
from datetime import timedelta

from qml_mp.core.job import Job
from tests.processes.harness import Server, wait_until
from tests.soak.ground import Ground, JournalTail, Watch, descendants, environment_of, fresh_ground, pause
from tests.soak.report import Row, median_and_p99
from tests.soak.scenario import Task
from tests.storage.flaky_proxy import FlakyProxy

_LIMIT_S, _CANCEL_GRACE_S, _TERM_GRACE_S, _SHUTDOWN_S = 3.0, 0.3, 0.7, 4.0
_REPLY_S = 1.6
_LONGEST_S = 60.0
_SETTINGS = environment_of(
    {
        "cancel_grace": _CANCEL_GRACE_S, "term_grace": _TERM_GRACE_S, "shutdown_timeout": _SHUTDOWN_S,
        "heartbeat_interval": 1, "max_crashes": 1000,
    }
)  # fmt: skip
_Measure = Callable[[Ground, Server, Callable[[], None]], float]
_MOST_MS = {"limit late": 500.0, "idle exit": 2000.0, "stop late": 1000.0, "replaced": 1000.0}


def run_silence(task: Task) -> Row:
    """Each round on servers of its own, the fault as old as chance wants it."""
    faults = ("silent", "slow") if task.backend == "postgres" else ("locked",)
    took_ms: dict[str, dict[str, list[float]]] = {}
    for fault in faults:
        took_ms[fault] = {name: [] for name in _MOST_MS}
        for turn in task.turns(task.count):
            for name, measure in _MEASURES.items():
                seed = f"{task.seed}/{fault}/{turn}/{name}"
                took_ms[fault][name].append(_one(task, seed, fault, measure))
    figures = [
        f"{fault}: " + ", ".join(median_and_p99(name, values) for name, values in by_name.items())
        for fault, by_name in took_ms.items()
    ]
    missed = [
        f"{fault}: {name} {value:.0f} ms"
        for fault, by_name in took_ms.items()
        for name, values in by_name.items()
        for value in values
        if value > _MOST_MS[name]
    ]
    done = min(len(values) for by_name in took_ms.values() for values in by_name.values())
    return task.row(done=done, figures="; ".join(figures), missed=tuple(missed))


def _one(task: Task, seed: str, fault: str, measure: _Measure) -> float:
    with contextlib.ExitStack() as stack:
        ground = stack.enter_context(fresh_ground(task.backend, task.postgres_url, seed=seed))
        server = ground.server("-w", "2", **_SETTINGS)
        begin = _prepared(stack, ground, server, fault)
        ground.start(server, ready=2)
        return measure(ground, server, begin)


def _prepared(stack: contextlib.ExitStack, ground: Ground, server: Server, fault: str) -> Callable[[], None]:
    """What begins the fault; it ends with the stack."""
    if fault == "locked":
        other = stack.enter_context(
            contextlib.closing(
                sqlite3.connect(ground.url.removeprefix("sqlite:///"), timeout=20, isolation_level=None)
            )
        )

        def lock() -> None:
            other.execute("BEGIN EXCLUSIVE")

        return lock
    proxy = stack.enter_context(FlakyProxy.before(ground.url))
    server.url = proxy.through(ground.url)
    return proxy.go_silent if fault == "silent" else lambda: proxy.slow_down(_REPLY_S)


def _limit_late(ground: Ground, server: Server, begin: Callable[[], None]) -> float:
    worker_pid = _busy(ground, timeout=timedelta(seconds=_LIMIT_S))
    due = time.monotonic() + _LIMIT_S + _CANCEL_GRACE_S + _TERM_GRACE_S
    with Watch([worker_pid]) as watch:
        pause(ground.rng.uniform(0.0, _LIMIT_S - 0.5))
        begin()
        watch.until_all_died(within_s=_LONGEST_S)
        return (watch.died_ns[worker_pid] / 1e9 - due) * 1000


def _idle_exit(ground: Ground, server: Server, begin: Callable[[], None]) -> float:
    begin()
    pause(ground.rng.uniform(0.0, 6.0))
    return _exit_ms(server)


def _stop_late(ground: Ground, server: Server, begin: Callable[[], None]) -> float:
    _busy(ground, timeout=None)
    begin()
    pause(ground.rng.uniform(0.0, 3.0))
    return _exit_ms(server) - _SHUTDOWN_S * 1000


def _replaced(ground: Ground, server: Server, begin: Callable[[], None]) -> float:
    victim = ground.workers(server)[0].process.pid
    begin()
    pause(ground.rng.uniform(0.0, 6.0))
    known = set(descendants(server.pid))
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: set(descendants(server.pid)) - known, within_s=_LONGEST_S, what=lambda: server.log()[-1000:]
    )
    return (time.monotonic() - began) * 1000


def _busy(ground: Ground, *, timeout: timedelta | None) -> int:
    """The pid of a worker that is in a job which must be killed."""
    tail = JournalTail(ground)
    job_id = ground.storage.enqueue(Job.new("stubborn", timeout=timeout))
    wait_until(lambda: tail.start_of(job_id), within_s=_LONGEST_S, what="the start of the job")
    line = tail.start_of(job_id)
    assert line is not None
    return line.pid


def _exit_ms(server: Server) -> float:
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    server.wait(_LONGEST_S)
    return (time.monotonic() - began) * 1000


_MEASURES = {
    "limit late": _limit_late,
    "idle exit": _idle_exit,
    "stop late": _stop_late,
    "replaced": _replaced,
}
