"""Tests: the app whose jobs leave their process group, streams, signals and limits other than they were."""

from __future__ import annotations

import contextlib
import gc
import logging
import logging.config
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from qml_mp import JobInterrupted, QmlApp, RetryPolicy, WorkerContext
from tests.processes.journal import note
from tests.until import wait_at

app = QmlApp(retry_policy=RetryPolicy.none())


@app.job()
def quick(ctx: WorkerContext) -> int:
    """Return the process's id."""
    note(ctx, "start")
    return os.getpid()


@app.job()
def exit_code_of_a_copy(how: str) -> int:
    """Fork a copy that comes to its end this way, and return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"the copy will {how}")  # to a pipe, where it stays in the process at first
    match how:
        case "raise":
            raise LookupError("the copy has no such file")
        case "exit with 3":
            sys.exit(3)
    return 7


@app.job()
def interrupt_a_program(ctx: WorkerContext) -> int:
    """Start a program and send it SIGINT, and then SIGTERM in case it ignores that; how it ended."""
    program = subprocess.Popen(["sleep", "600"])
    for number in (signal.SIGINT, signal.SIGTERM):
        program.send_signal(number)
    return program.wait()


@app.job()
def escape(ctx: WorkerContext) -> None:
    """Join the supervisor's process group, ignore SIGTERM, and sleep for ever; return at the second run."""
    if ctx.job.claim_seq > 1:
        return
    os.setpgid(0, os.getpgid(os.getppid()))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(ctx, "start")
    while True:
        time.sleep(60)  # for ever, whatever wakes it


@app.job()
def take_sigterm_away(ctx: WorkerContext) -> None:
    """Sleep with what SIGTERM does by default, as after `loop.remove_signal_handler`."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    note(ctx, "start")
    time.sleep(600)


@app.job()
def exit_at_sigterm(ctx: WorkerContext) -> None:
    """Sleep with a handler that ends the process, as a Java machine in it has one."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    note(ctx, "start")
    time.sleep(600)


@app.job()
def become_another_program(ctx: WorkerContext) -> None:
    """Have a program take the place of the worker."""
    note(ctx, "start")
    os.execv("/bin/sleep", ["sleep", "600"])


@app.job()
def clean_up_badly(ctx: WorkerContext) -> None:
    """Sleep, and raise an error of its own when that is interrupted."""
    try:
        note(ctx, "start")
        time.sleep(600)
    finally:
        raise OSError("the connection is closed")


@app.job()
def wrap_errors(ctx: WorkerContext) -> None:
    """Sleep, and put an error of its own in the place of whatever ends that."""
    try:
        note(ctx, "start")
        time.sleep(600)
    except BaseException as error:
        raise RuntimeError("the task failed") from error


@app.job()
async def clean_up_badly_in_a_task(ctx: WorkerContext) -> None:
    """The same in a coroutine that computes."""
    try:
        note(ctx, "start")
        while True:
            pass
    finally:
        raise OSError("the connection is closed")


@app.job()
def leave_at_sigterm(ctx: WorkerContext) -> None:
    """Sleep, with a handler of SIGTERM that programs have."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    note(ctx, "start")
    time.sleep(600)


@app.job()
def fail_after_swallowing(ctx: WorkerContext) -> None:
    """Sleep, make nothing of the interruption, and fail for a reason of its own."""
    with contextlib.suppress(JobInterrupted):
        note(ctx, "start")
        time.sleep(600)
    raise ValueError("of its own")


@app.job()
def change_group(ctx: WorkerContext) -> int:
    """Move to the supervisor's process group, and stay there."""
    os.setpgid(0, os.getpgid(os.getppid()))
    return os.getpid()


@app.job()
def group(ctx: WorkerContext) -> list[int]:
    """The process and its group."""
    return [os.getpid(), os.getpgrp()]


@app.job()
def close_streams(ctx: WorkerContext, gate: str, first: int = 0) -> int:
    """Close the descriptors up to 2, and wait until the gate is there."""
    os.closerange(first, 3)
    note(ctx, "start")
    wait_at(Path(gate))
    return os.getpid()


@app.job()
def replace_streams(ctx: WorkerContext, path: str) -> int:
    """Put a file in the place of standard output and error, and let `print` write to another one."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
    sys.stdout = open(f"{path}.printed", "w")  # noqa: SIM115
    return os.getpid()


@app.job()
def close_print(ctx: WorkerContext) -> int:
    """Close what `print` writes to."""
    sys.stdout.close()
    return os.getpid()


@app.job()
def streams(ctx: WorkerContext) -> list[str]:
    """What descriptors 0 to 2 are."""
    return [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]


@app.job()
def say(ctx: WorkerContext, text: str, times: int = 1) -> int:
    """Print."""
    for _ in range(times):
        print(text, end="", flush=True)
    return os.getpid()


@app.job()
def say_as_a_statement(ctx: WorkerContext, statement: str) -> int:
    """Print what PostgreSQL, were it to read it, would take for a statement to run."""
    text = statement + "\0"
    print("Q" + struct.pack("!I", 4 + len(text)).decode() + text, end="", flush=True)
    return os.getpid()


@app.job()
def use_every_way_out(ctx: WorkerContext, mib: int) -> int:
    """Write so much in each of the ways in which jobs write: print, logging, a subprocess, the descriptor."""
    note(ctx, "start")
    line = "x" * 1023
    for _ in range(mib * 1024):
        print(line)
    logger = logging.getLogger("of.the.job")
    for _ in range(mib * 1024):
        logger.warning(line)
    program = f"import sys\nfor _ in range({mib * 1024}): print({line!r})"
    subprocess.run([sys.executable, "-c", program], check=True)
    for _ in range(mib * 1024):
        os.write(1, line.encode() + b"\n")
    sys.stdout.flush()
    return os.getpid()


@app.job()
def write_to_what_nobody_reads(ctx: WorkerContext) -> int:
    """Log, and run a program that prints; neither minds that nobody reads it."""
    logging.getLogger("of.the.job").warning("to nobody")
    subprocess.run([sys.executable, "-c", "print('to nobody')"], check=False)
    return os.getpid()


@app.job()
def unsettle_more(ctx: WorkerContext) -> int:
    """Change what a job can change of signals and limits beyond the usual ones."""
    for number in (signal.SIGPROF, signal.SIGWINCH, signal.SIGRTMIN + 3):
        signal.signal(number, lambda *_: None)
    signal.signal(signal.SIGURG, signal.SIG_IGN)
    most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    resource.setrlimit(resource.RLIMIT_NPROC, (1, most))
    return os.getpid()


@app.job()
def signals_and_limits(ctx: WorkerContext) -> dict[str, object]:
    """What `unsettle_more` changes, as the kernel has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    masks = [line for line in lines if line.startswith(("SigIgn", "SigCgt"))]
    return {"masks": masks, "processes": resource.getrlimit(resource.RLIMIT_NPROC)[0]}


@app.job()
def unsettle_settings(ctx: WorkerContext) -> int:
    """Change what a job can change of what is set for the whole process."""
    os.setpriority(os.PRIO_PROCESS, 0, 7)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.setrecursionlimit(5000)
    socket.setdefaulttimeout(3)
    logging.disable(logging.CRITICAL)
    gc.disable()
    if os.getuid() == 0:
        os.setgroups([1000])
        os.setegid(1000)
        os.seteuid(1000)
    return os.getpid()


@app.job()
def settings(ctx: WorkerContext) -> dict[str, object]:
    """What `unsettle_settings` changes."""
    return {
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "processors": sorted(os.sched_getaffinity(0)),
        "recursion": sys.getrecursionlimit(),
        "timeout": socket.getdefaulttimeout(),
        "logs": logging.getLogger("of.the.job").isEnabledFor(logging.WARNING),
        "collects": gc.isenabled(),
    }


@app.job()
def configure_logging(ctx: WorkerContext) -> int:
    """Disable all loggers that there are, as a configuration does that does not name them."""
    logging.config.dictConfig({"version": 1})
    return os.getpid()


@app.job()
def change_user(ctx: WorkerContext) -> int:
    """Be another user for good."""
    note(ctx, "start")
    os.setuid(65534)
    return os.getpid()


@app.job()
def leave_a_thread_and_sleep(ctx: WorkerContext) -> None:
    """Leave a thread behind that never ends, and sleep until something ends that."""
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    note(ctx, "start")
    time.sleep(600)


@app.job()
def leave_a_thread_that_prints(ctx: WorkerContext) -> int:
    """Leave a thread behind that prints more than a pipe holds, and so keeps the lock of standard output."""
    threading.Thread(target=lambda: print("x" * (1 << 24), flush=True), daemon=True).start()
    while select.select([], [1], [], 0)[1]:
        time.sleep(0.002)  # between two looks
    return os.getpid()


@app.job()
def wait_in_threads(ctx: WorkerContext, threads: int) -> int:
    """Wait, in several threads, to be cancelled, and then in this one too."""
    waiting = [threading.Thread(target=ctx.cancel.wait, args=(60,)) for _ in range(threads)]
    for thread in waiting:
        thread.start()
    note(ctx, "start")
    for thread in waiting:
        thread.join()
    ctx.cancel.raise_if_cancelled()
    return os.getpid()
