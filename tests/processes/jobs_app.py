"""Tests: the app that the process tests run: each job writes its runs to a journal the system never reads."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from qml_mp import QmlApp, RetryPolicy, WorkerContext
from tests.processes.journal import note
from tests.until import wait_at

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
    try:
        note(ctx, "start")
        time.sleep(seconds)  # the job's own work
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
            time.sleep(60)  # for ever, whatever is raised
        except BaseException:
            continue


@app.job()
def deaf(ctx: WorkerContext) -> None:
    """Block every signal that can be blocked and sleep."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    note(ctx, "start")
    while True:
        time.sleep(60)  # for ever, whatever is sent


@app.job()
def spin(ctx: WorkerContext) -> None:
    """A Python loop that never ends."""
    try:
        note(ctx, "start")
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
    code = f"{ignoring}; print(flush=True); time.sleep(600)"  # until it is killed
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


@app.job()
def raise_base(ctx: WorkerContext, name: str) -> None:
    """Raise something that is not an `Exception`."""
    note(ctx, "start")
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "GeneratorExit": GeneratorExit}[
        name
    ]("x")


@app.job()
def unsettle(ctx: WorkerContext) -> None:
    """Change all of the process that a job can change."""
    note(ctx, "start")
    os.chdir("/")
    os.umask(0o777)
    os.environ["QML_TEST_LEFT_BEHIND"] = "1"
    os.environ.pop("PATH", None)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@app.job()
def surroundings(ctx: WorkerContext) -> dict[str, object]:
    """Describe what `unsettle` changes."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "directory": os.getcwd(),
        "umask": umask,
        "environment": sorted(os.environ),
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "sigalrm": str(signal.getsignal(signal.SIGALRM)),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


@app.job()
def close_descriptors(ctx: WorkerContext) -> None:
    """Close everything that a process may have open."""
    note(ctx, "start")
    os.closerange(3, 4096)


@app.job()
def replace_descriptors(ctx: WorkerContext, path: str) -> None:
    """Put another file in the place of every open descriptor."""
    note(ctx, "start")
    own = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    for fd in range(3, 64):
        if fd != own:
            with contextlib.suppress(OSError):
                os.fstat(fd)
                os.dup2(own, fd)


@app.job()
def replace_descriptors_and_fork(ctx: WorkerContext, folder: str) -> None:
    """Close every descriptor, open files that are given the numbers, and fork."""
    note(ctx, "start")
    os.closerange(3, 4096)
    for number in range(40):
        fd = os.open(f"{folder}/foreign{number}", os.O_RDWR | os.O_CREAT, 0o600)
        os.write(fd, b"f" * 100_000)
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@app.job()
def leave_a_grandchild(ctx: WorkerContext) -> int:
    """Leave a process behind in the worker's group, and return its pid."""
    note(ctx, "start")
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)  # for ever: it has to be killed
        os._exit(0)
    return pid


@app.job()
def recurse(ctx: WorkerContext) -> None:
    """Recurse without an end."""

    def deeper() -> None:
        deeper()

    note(ctx, "start")
    deeper()


@app.job()
def eat_memory(ctx: WorkerContext, mib: int) -> str:
    """Fill so much memory, then wait to be asked to end."""
    block = bytearray(mib * 1024 * 1024)
    note(ctx, "start")
    ctx.cancel.wait(60)
    return str(len(block))


@app.job()
def outgrow_a_group(ctx: WorkerContext, entrance: str, mib: int) -> None:
    """Move into a control group with little memory, and want more than it has."""
    note(ctx, "start")
    with open(entrance, "w") as file:
        file.write(str(os.getpid()))
    bytearray(b"x") * (mib * 1024 * 1024)


@app.job()
def native_threads(ctx: WorkerContext) -> dict[str, str | None]:
    """What the native libraries are told."""
    return {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@app.job(on_crash="fail")
def die_once_only(ctx: WorkerContext) -> None:
    """Kill the worker, as a job that must not begin twice."""
    note(ctx, "start")
    os.kill(os.getpid(), signal.SIGKILL)


@app.job(max_crashes=2)
def die_at_most_twice(ctx: WorkerContext) -> None:
    """Kill the worker, with a budget of its own."""
    note(ctx, "start")
    os.kill(os.getpid(), signal.SIGKILL)


_kept: list[bytearray] = []


@app.job()
def keep_memory(ctx: WorkerContext, mib: int) -> None:
    """Fill so much memory and never give it back."""
    note(ctx, "start")
    _kept.append(bytearray(mib * 1024 * 1024))


@app.job()
def keep_memory_at_the_end(ctx: WorkerContext, gate: str, mib: int) -> None:
    """Wait for the gate, and end at once with so much memory that is never given back."""
    note(ctx, "start")
    wait_at(Path(gate))
    _kept.append(bytearray(b"x") * (mib * 1024 * 1024))


@app.job()
def lead(ctx: WorkerContext, followers: int, chars: int) -> None:
    """Have others follow, whose metadata is so long."""
    note(ctx, "start")
    ctx.then(*(quick.using(metadata={"long": "x" * chars}).job() for _ in range(followers)))


@app.job()
def tell(ctx: WorkerContext, gate: str) -> None:
    """Say how far it is, many times, until the file is there, and then that it is done."""
    while not os.path.exists(gate):
        ctx.progress(1, 3, "waits")
        time.sleep(0.001)  # so that some of what it says is written, and not all
    ctx.progress(3, 3)
