"""Tests: apps whose jobs do to their process what jobs must not do, and apps that are hard to import."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path

import psycopg

from qml_mp import Job, QmlApp, RetryPolicy, StateChange, WorkerContext
from qml_mp.processing.middleware import CallNext
from tests.processes.journal import note

IMPORTS = "QML_TEST_IMPORTS"
"""Names a file: each import appends a line with the pid and the open descriptors."""
HANG = "QML_TEST_HANG"
"""Names a file: the second import (the first one of a worker) never ends."""
HOME = "QML_TEST_HOME"
"""Names a folder that the import makes and moves to."""

app = QmlApp(retry_policy=RetryPolicy.none())
_kept: list[int] = []
_left_open: list[object] = []


def open_files(pid: int | str = "self") -> dict[int, str]:
    """The open descriptors of a process, with what they are."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that the listing used
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def _note_import(path: str) -> None:
    with open(path, "a") as stream:
        files = {fd: file for fd, file in open_files().items() if fd != stream.fileno()}
        print(json.dumps([os.getpid(), list(files.values())]), file=stream)


def _hang_the_second_time(path: Path) -> None:
    before = path.read_text() if path.exists() else ""
    path.write_text(before + ".")
    if before == ".":
        time.sleep(600)  # past boot_timeout


if IMPORTS in os.environ:
    _note_import(os.environ[IMPORTS])
if HANG in os.environ:
    _hang_the_second_time(Path(os.environ[HANG]))
if HOME in os.environ:
    os.makedirs(os.environ[HOME], exist_ok=True)
    os.chdir(os.environ[HOME])


@app.job()
def quick(ctx: WorkerContext) -> int:
    """Return the process's id."""
    note(ctx, "start")
    return os.getpid()


@app.job()
def nap(ctx: WorkerContext, seconds: float) -> str:
    """Sleep."""
    note(ctx, "start")
    time.sleep(seconds)  # the job's own work
    return "slept"


@app.job()
async def think(ctx: WorkerContext) -> str:
    """Sleep in an event loop of the worker."""
    await asyncio.sleep(0.01)
    return "thought"


@app.job()
def leave_an_alarm(ctx: WorkerContext, seconds: float) -> None:
    """Have this process killed by a timer, some time after the job."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


@app.job()
def remove_the_home(ctx: WorkerContext) -> int:
    """Leave the worker without the folder that it was started in."""
    os.chdir("/")
    os.rmdir(os.environ[HOME])
    return os.getpid()


@app.job()
def renew_a_connection(ctx: WorkerContext, path: str) -> int:
    """Close what an earlier job has left open, and open something else, as a pool of connections does."""
    while _kept:
        os.close(_kept.pop())
    _kept.extend(os.open(path, os.O_RDWR | os.O_CREAT, 0o600) for _ in range(3))
    return os.getpid()


@app.job()
def share_the_work(ctx: WorkerContext) -> int:
    """Use a pool of forked processes, ask in one whether to end, and terminate one."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        squares = sum(pool.map(_square, range(10)))
    process = multiprocessing.get_context("fork").Process(target=_ask, args=(ctx,))
    process.start()
    process.join()
    assert process.exitcode == 0
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    process.start()
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM
    return squares


def _square(n: int) -> int:
    return n * n


def _ask(ctx: WorkerContext) -> None:
    sys.exit(1 if ctx.cancel.is_cancelled else 0)


@app.job()
def use_up_descriptors(ctx: WorkerContext, lower_limit: bool) -> None:
    """Open files until there are no descriptors left, and keep them."""
    note(ctx, "start")
    if lower_limit:
        most = len(open_files()) + 3
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    while True:
        _kept.append(os.open(os.devnull, os.O_RDONLY))


@app.job()
def leave_a_transaction(ctx: WorkerContext) -> None:
    """Enqueue in a transaction of the job's own, and leave it open."""
    url = app.storage.url
    connection = (
        sqlite3.connect(url.removeprefix("sqlite:///"))
        if url.startswith("sqlite:")
        else psycopg.connect(url.partition("?")[0])
    )
    app.enqueue("quick", conn=connection)
    _left_open.append(connection)


@app.job()
def use_up_memory(ctx: WorkerContext) -> None:
    """Ask for more memory than a limit allows."""
    note(ctx, "start")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used_pages * os.sysconf("SC_PAGE_SIZE") + 2**26, hard))
    bytearray(2**30)


@app.job()
def leave_a_thread(ctx: WorkerContext) -> int:
    """Leave a thread that never ends and that an interpreter would wait for at its exit."""
    threading.Thread(target=time.sleep, args=(600,), daemon=False).start()
    return os.getpid()


@app.job()
def leave_a_session(ctx: WorkerContext, report: str) -> int:
    """Leave a process in a session of its own, out of reach; it tells which files it holds."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        Path(report).with_suffix(".part").write_text(json.dumps(list(open_files().values())))
        Path(report).with_suffix(".part").rename(report)
        time.sleep(600)  # for ever: it has to be killed
        os._exit(0)
    return pid


@app.job()
def die_beside_a_grandchild(ctx: WorkerContext) -> None:
    """Leave a process that holds everything of the worker open, and die."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)  # for ever: it has to be killed
        os._exit(0)
    note(ctx, f"child {pid}")
    note(ctx, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@app.job()
def print_lines(ctx: WorkerContext, lines: int) -> int:
    """Print to both streams."""
    note(ctx, "start")
    for _ in range(lines):
        print("x" * 1023)
        print("y" * 1023, file=sys.stderr)
    sys.stdout.flush()
    return os.getpid()


@app.job()
def recurse(ctx: WorkerContext, in_c: bool) -> str:
    """Recurse without an end: in Python, or in C code and without the interpreter's limit."""
    note(ctx, "start")
    if not in_c:
        return _deeper()
    sys.setrecursionlimit(2**30)
    nested: list[object] = []
    for _ in range(2_000_000):
        nested = [nested]
    return repr(nested)[:10]


def _deeper() -> str:
    return _deeper()


@app.job()
def give_back(ctx: WorkerContext, what: str) -> object:
    """Return what cannot be stored."""
    return {
        "object": object(),
        "set": {1, 2},
        "nan": float("nan"),
        "bytes": b"\xff",
        "huge": "x" * 50_000_000,
    }[what]


class RudeError(Exception):
    """Cannot be described."""

    def __str__(self) -> str:
        if self.args[0] == "loop":
            while True:
                pass
        raise ValueError("no text")

    __repr__ = __str__


@app.job()
def raise_rude(ctx: WorkerContext, how: str) -> None:
    """Raise an error whose text raises, or never ends."""
    raise RudeError(how)


def unruly_middleware(job: Job, context: WorkerContext, call_next: CallNext) -> object:
    """Raises before or after the job, or while the job's own error passes, as its queue's name says."""
    if job.queue == "before":
        raise RuntimeError("before the job")
    try:
        result = call_next(job, context)
    except ValueError as error:
        raise RuntimeError("on the job's error") from error
    if job.queue == "after":
        raise RuntimeError("after the job")
    return result


def unruly_hook(change: StateChange) -> None:
    """Raises at every transition, or hangs at the one that the job's queue names."""
    if change.job.queue == f"hang-at-{change.new}":
        time.sleep(600)  # past its time limit
    raise SystemExit("in the hook")


hooked = QmlApp(retry_policy=RetryPolicy.none(), middleware=[unruly_middleware], on_state_change=unruly_hook)


@hooked.job()
def work(fails: bool = False) -> str:
    """Return, or raise."""
    if fails:
        raise ValueError("the job's own")
    return "done"
