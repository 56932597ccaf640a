"""Tests: one supervisor that replaces workers by the thousand, and one whose workers cannot boot (B6)."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from qml_mp.core.job import Job
from tests.nightly.ground import Ground, descendants, environment_of, fresh_ground, pause, state_of
from tests.nightly.report import Row
from tests.nightly.scenario import Task, nothing_left
from tests.processes.harness import Server, wait_until

_WORKERS = 4
_WARM_UP = 40
"""Replacements before the first look, so that what is made once has been made."""
_MOST_GROWTH_BYTES = 5_000_000
_STUCK_AFTER_S = 60.0
_CALM_S = 0.5
_MOST_FORKS_IN_30_S = 10
_BREAKABLE = '''"""An app that imports only while the file beside it does not say otherwise."""

import pathlib

from tests.nightly.apps import app

if pathlib.Path(__file__).with_name("broken").exists():
    raise RuntimeError("broken on purpose")
__all__ = ["app"]
'''


def run_replacements(task: Task) -> Row:
    """For workers that are used up after one job, and for workers that a job killed."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        settings = environment_of({"max_jobs": 1, "max_crashes": 1000})
        server = ground.start(ground.server("-w", str(_WORKERS), **settings), ready=_WORKERS)
        first = _reach(task, ground, min(_WARM_UP, task.count))
        before = state_of(server)
        done = _reach(task, ground, task.count + first) - first
        after = state_of(server)
        rate = done / max(task.watch.reading()[0], 0.001)
        code = server.stop()
        growth = after[1] - before[1]
        broken = [] if code == 0 else [f"the server exited with {code}: {server.log()[-500:]}"]
        if after[0] != before[0]:
            broken.append(f"descriptors: {before[0]} before, {after[0]} after")
        if growth > _MOST_GROWTH_BYTES:
            broken.append(f"resident memory grew by {growth / 1e6:.1f} MB")
        return task.row(
            done=done,
            figures=f"{before[0]} -> {after[0]} descriptors, {growth / 1e6:+.1f} MB, {rate:.1f} a second",
            broken=(*broken, *nothing_left(ground, claims=False)),
        )


def run_boot_failure(task: Task) -> Row:
    """A server whose app stops importing; the count is the seconds for which it stays so."""
    with fresh_ground(task.backend, task.postgres_url, seed=task.seed) as ground:
        (ground.folder / "breakable.py").write_text(_BREAKABLE)
        broken_now = ground.folder / "broken"
        server = ground.start(ground.server("-w", "2", app="breakable:app"), ready=2)
        # Ready in the eyes of the supervisor too: first workers that cannot boot end the server.
        wait_until(lambda: server.log().count(" is ready (pid ") >= 2, what="two ready workers")
        known = _forks(server)
        broken_now.touch()
        for info in ground.workers(server):
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.process.pid, signal.SIGKILL)
        began = time.monotonic()
        pause(task.count)
        forks = _forks(server) - known
        broken_now.unlink()
        mended = time.monotonic()
        wait_until(lambda: len(ground.workers(server)) == 2, what=lambda: server.log()[-2000:])
        recovery_s = time.monotonic() - mended
        allowed = _MOST_FORKS_IN_30_S
        broken = [] if forks <= allowed else [f"{forks} forks in {task.count} s, allowed {allowed}"]
        if server.stop() != 0:
            broken.append(f"the server did not stop in order: {server.log()[-500:]}")
        return task.row(
            done=int(time.monotonic() - began),
            figures=f"{forks} forks, whole again after {recovery_s:.1f} s",
            broken=(*broken, *nothing_left(ground)),
        )


def _reach(task: Task, ground: Ground, wanted: int) -> int:
    """Feed jobs until so many workers beyond the first ones have registered, or the time is up; how many."""
    done, progress_at = 0, time.monotonic()
    while True:
        now_done = _registered(ground) - _WORKERS
        if now_done != done:
            done, progress_at = now_done, time.monotonic()
        if done >= wanted or task.time_is_up:
            break
        if time.monotonic() - progress_at > _STUCK_AFTER_S:
            raise AssertionError(f"no worker was replaced for {_STUCK_AFTER_S} s, after {done}")
        if ground.audit.unfinished() < 2 * _WORKERS:
            ground.storage.enqueue_many(Job.new(method) for method in ("unit", "suicide") * _WORKERS)
        pause(0.05)
    wait_until(lambda: not ground.audit.unfinished(), within_s=_STUCK_AFTER_S, what="the end of all jobs")
    wait_until(lambda: _is_calm(ground), within_s=_STUCK_AFTER_S, what="a whole fleet")
    return _registered(ground) - _WORKERS


def _registered(ground: Ground) -> int:
    workers = ground.audit.workers(after=0)
    return len(workers)


def _is_calm(ground: Ground) -> bool:
    """All workers there, the last one that is used up replaced, and nothing else forked."""
    (server,) = ground.servers
    before = descendants(server.pid)
    pause(_CALM_S)
    whole = len(ground.workers(server)) == _WORKERS and len(before) == _WORKERS + 1  # and the guardian
    return whole and descendants(server.pid) == before


def _forks(server: Server) -> int:
    return server.log().count(" started (pid ")
