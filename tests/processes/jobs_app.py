"""Tests: the app that the process tests run: each job writes its runs to a journal the system never reads."""

from __future__ import annotations

import collections
import itertools
import os
import signal
import subprocess
import sys
import time

from qml_mp import QmlApp, RetryPolicy, WorkerContext
from tests.processes.journal import note

app = QmlApp(retry_policy=RetryPolicy.none())


@app.job()
def quick(ctx: WorkerContext, busy_s: float = 0.0) -> int:
    """Return the number of the claim, after so much computing."""
    note(ctx, "start")
    end = time.monotonic() + busy_s
    while time.monotonic() < end:
        pass
    note(ctx, "end")
    return ctx.job.claim_seq


@app.job()
def nap(ctx: WorkerContext, seconds: float) -> str:
    """Sleep in one system call, and say so at both ends."""
    note(ctx, "start")
    try:
        time.sleep(seconds)
    finally:
        note(ctx, "end")
    return "slept"


@app.job()
def heed(ctx: WorkerContext) -> str:
    """Wait to be asked to end, and return the reason."""
    note(ctx, "start")
    ctx.cancel.wait(60)
    note(ctx, "end")
    return str(ctx.cancel.reason)


@app.job()
def stubborn(ctx: WorkerContext) -> None:
    """Ignore SIGTERM and sleep through everything."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(ctx, "start")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


@app.job()
def deaf(ctx: WorkerContext) -> None:
    """Block every signal that can be blocked and sleep."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    note(ctx, "start")
    while True:
        time.sleep(60)


@app.job()
def spin(ctx: WorkerContext) -> None:
    """A Python loop that never ends."""
    note(ctx, "start")
    try:
        while True:
            pass
    finally:
        note(ctx, "end")


@app.job()
def spin_in_c(ctx: WorkerContext) -> None:
    """A loop in C that holds the interpreter lock and looks at no signal, for ever."""
    note(ctx, "start")
    collections.deque(itertools.repeat(None), maxlen=0)


@app.job()
def parent_of_the_stubborn(ctx: WorkerContext) -> None:
    """Wait for a subprocess that ignores SIGTERM."""
    ignoring = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    code = f"{ignoring}; print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    note(ctx, f"child {child.pid}")
    note(ctx, "start")
    child.wait()


@app.job()
def die(ctx: WorkerContext, signal_number: int = 0, exit_code: int = 0) -> None:
    """Kill the worker from inside: by a signal, or by an exit that skips everything."""
    note(ctx, "start")
    if signal_number:
        os.kill(os.getpid(), signal_number)
    os._exit(exit_code)


@app.job()
def split(ctx: WorkerContext) -> str:
    """Fork, and let both copies return."""
    os.fork()
    return "returned"


@app.job()
def fail(message: str = "on purpose") -> None:
    """Raise."""
    raise ValueError(message)
