"""Tests, worker: jobs for workers that hold several claims. Each returns the number of its claim."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress

from qml_mp import QmlApp, RetryPolicy, WorkerContext
from tests.nightly.apps import gate_of
from tests.processes.journal import sole_run
from tests.until import wait_at

app = QmlApp(retry_policy=RetryPolicy.none())


@app.job()
def brief(ctx: WorkerContext) -> int:
    """End at once."""
    with sole_run(ctx):
        pass
    return ctx.job.claim_seq


@app.job()
def carry(ctx: WorkerContext, size_bytes: int, notes: bool = False) -> str:
    """Return so many bytes of JSON; with `notes` having said something on the way."""
    with sole_run(ctx):
        if notes:
            ctx.progress(1, 2, "on the way")
    return "é" * ((size_bytes - 2) // 2)


@app.job()
def busy(ctx: WorkerContext, seconds: float) -> int:
    """Compute."""
    with sole_run(ctx):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass
    return ctx.job.claim_seq


@app.job()
def linger(ctx: WorkerContext, seconds: float) -> int:
    """Sleep."""
    with sole_run(ctx):
        time.sleep(seconds)  # the job's own work
    return ctx.job.claim_seq


@app.job()
def grip(ctx: WorkerContext, seconds: float) -> int:
    """Sleep in C code that holds the interpreter lock."""
    with sole_run(ctx):
        ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return ctx.job.claim_seq


@app.job()
def gated(ctx: WorkerContext, how: str = "sleeps") -> int:
    """Wait until the test has opened the gate: asleep, computing, or with the interpreter lock."""
    gate = gate_of(ctx.job.id)
    with sole_run(ctx):
        match how:
            case "computes":
                while not gate.exists():
                    pass
            case "grips":
                c = ctypes.PyDLL(None)
                while c.access(os.fsencode(gate), os.F_OK):
                    c.usleep(100_000)
            case _:
                wait_at(gate)
    return ctx.job.claim_seq


@app.job()
def fall(ctx: WorkerContext, how: str) -> int:
    """End the own process at the first run."""
    with sole_run(ctx), suppress(FileExistsError):  # its first claim may have gone back before it began
        gate_of(ctx.job.id).touch(exist_ok=False)
        _end_process(how)
    return ctx.job.claim_seq


def _end_process(how: str) -> None:
    match how:
        case "exit":
            os._exit(0)
        case "segfault":
            ctypes.string_at(0)
        case "close all":
            os.closerange(3, 4096)
        case _:
            os.kill(os.getpid(), signal.Signals[how])
