"""Tests: programs that embed a server, each run in a process of its own: `python -m … NAME URL FOLDER`.

Each prints one JSON object at its end: what the test asks about.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

from qml_mp import (
    BackgroundJobServer,
    ErrorInfo,
    Job,
    QmlApp,
    QmlError,
    RetryPolicy,
    ServerAlreadyRunning,
    ServerConfig,
)
from qml_mp.core.state import StateName
from qml_mp.errors import StorageError
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.processes.apps_faults import app
from tests.processes.harness import wait_for_state, wait_until
from tests.processes.journal import read_journal
from tests.storage.helpers import patient_url

CONFIG = ServerConfig(worker_count=2, server_name="embedded")
NAME = "tests.processes.apps_faults:app"
Report = dict[str, object]


def single(storage: Storage, folder: Path) -> Report:
    """A script with one thread: the server is forked, twice in a row."""
    before = surroundings()
    server = BackgroundJobServer(CONFIG, storage, app.program)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(7)"], stdin=subprocess.PIPE
    )
    pids = []
    for _ in range(2):
        with server:
            pids.append(run_a_job(storage))
            running = server.is_running()
            refused = is_refused(server)
            same = surroundings() == before
        stopped = not server.is_running()
    child.communicate()
    storage.close()
    return {
        "jobs ran elsewhere": os.getpid() not in pids and pids[0] != pids[1],
        "ran": running,
        "refused": refused,
        "same": same and surroundings() == before,
        "stopped": stopped,
        "own child": child.returncode,
        "exit code": server.exit_code,
    }


def threaded(storage: Storage, folder: Path) -> Report:
    """A service with threads that log, handlers and children of its own: the server is spawned."""
    calls: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        calls.append(number)

    reading, writing = socket.socketpair()
    writing.setblocking(False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    signal.set_wakeup_fd(writing.fileno())
    logging.basicConfig(filename=folder / "host.log", level=logging.DEBUG)
    ended = threading.Event()
    thread = threading.Thread(target=log_in_a_loop, args=(ended,))
    thread.start()
    before = surroundings()
    sys.path.append(folder)  # type: ignore[arg-type]  # which the interpreter ignores, and so does everybody
    server = BackgroundJobServer(CONFIG, storage, NAME)
    child = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(7)"], stdin=subprocess.PIPE
    )
    for _ in range(2):
        server.start()
        run_a_job(storage)
        same = surroundings() == before
        os.kill(os.getpid(), signal.SIGTERM)
        server.stop()
    child.communicate()
    storage.close()
    same = same and surroundings() == before
    ended.set()
    thread.join()
    return {
        "same": same,
        "own child": child.returncode,
        "sigterms": calls.count(signal.SIGTERM),
        "woken": len(reading.recv(4096)) > 0,
        "exit code": server.exit_code,
    }


def crowded(storage: Storage, folder: Path) -> Report:
    """A service whose threads start the server when they miss it, and all stop it at the end."""
    outcomes: list[str] = []
    together = threading.Barrier(4)

    def call(action: Callable[[], None]) -> None:
        together.wait()
        try:
            action()
            outcomes.append("done")
        except ServerAlreadyRunning:
            outcomes.append("refused")
        except Exception as error:
            outcomes.append(repr(error))

    server = BackgroundJobServer(CONFIG, storage, NAME)
    told = []
    for _ in range(2):
        for action in (server.start, server.stop):
            threads = [threading.Thread(target=call, args=(action,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            told.append(sorted(outcomes))
            outcomes.clear()
    return {"starts": told[::2], "stops": told[1::2], "running": server.is_running()}


def log_in_a_loop(ended: threading.Event) -> None:
    """Hold the lock of the log again and again, and leave the interpreter to the other threads now and
    then: on a busy machine they would hardly run."""
    while not ended.wait(0.001):
        for _ in range(10):
            logging.getLogger("host").debug("busy")


def greedy(storage: Storage, folder: Path) -> Report:
    """A host that waits for any child in its SIGCHLD handler, and so collects the supervisor."""
    collected: list[int] = []

    def collect(_number: int, _frame: FrameType | None) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            collected.append(pid)

    signal.signal(signal.SIGCHLD, collect)
    server = BackgroundJobServer(CONFIG, storage, app.program)
    for _ in range(2):
        server.start()
        run_a_job(storage)
        server.stop()
    return {"stopped": not server.is_running(), "collected": len(collected) > 0}


def in_a_loop(storage: Storage, folder: Path) -> Report:
    """A running event loop with one thread, signal handlers and subprocesses: the server is forked."""
    return asyncio.run(_in_a_loop(storage, app.program, in_thread=False))


def in_a_loop_with_threads(storage: Storage, folder: Path) -> Report:
    """The same, started as the documentation says: from a thread, by name."""
    return asyncio.run(_in_a_loop(storage, NAME, in_thread=True))


async def _in_a_loop(storage: Storage, program: object, *, in_thread: bool) -> Report:
    loop = asyncio.get_running_loop()
    calls: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        loop.add_signal_handler(number, calls.append, number)
    server = BackgroundJobServer(CONFIG, storage, program)  # type: ignore[arg-type]
    before = handlers()

    async def call(function: Callable[[], None]) -> None:
        await asyncio.to_thread(function) if in_thread else function()

    await call(server.start)
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "import sys; sys.exit(7)")
    job_id = storage.enqueue(Job.new("think"))
    while True:
        job = await asyncio.to_thread(storage.get, job_id)
        if job is not None and job.state_name.is_final:
            break
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)
    while len(calls) < 2:
        await asyncio.sleep(0.01)
    same = handlers() == before
    await asyncio.to_thread(server.stop)
    storage.close()
    return {
        "state": job.state_name,
        "result": job.result,
        "own child": await child.wait(),
        "calls": sorted(calls),
        "same": same and handlers() == before,
        "exit code": server.exit_code,
    }


def doomed(storage: Storage, folder: Path) -> Report:
    """Waits to be killed while a job runs; its own forked child lives on."""
    return _doomed(BackgroundJobServer(CONFIG, storage, app.program), storage, folder)


def doomed_with_threads(storage: Storage, folder: Path) -> Report:
    """The same, with a thread, so that the server is spawned."""
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return _doomed(BackgroundJobServer(CONFIG, storage, NAME), storage, folder)


def _doomed(server: BackgroundJobServer, storage: Storage, folder: Path) -> Report:
    server.start()
    job_id = storage.enqueue(Job.new("nap", {"seconds": 1}))
    # A claim that has not begun would be given back.
    wait_until(lambda: read_journal(folder / "journal"), what="the start of the job")
    storage.close()
    own = os.fork()
    if own == 0:
        time.sleep(600)  # for ever: the test ends it
        os._exit(0)
    (folder / "part").write_text(json.dumps({"job": job_id, "own child": own}))
    (folder / "part").rename(folder / "doomed")
    time.sleep(600)  # for ever: the test kills it
    return {}


def copied(storage: Storage, folder: Path) -> Report:
    """Forks a copy of itself that looks at the server, and leaves as the host would."""
    with BackgroundJobServer(CONFIG, storage, app.program) as server:
        pid = os.fork()
        if pid == 0:
            seen = server.is_running()
            server.stop()
            os._exit(0 if seen else 1)
        _, status = os.waitpid(pid, 0)
        run_a_job(storage)
        running = server.is_running()
    return {"copy": os.waitstatus_to_exitcode(status), "running": running, "exit code": server.exit_code}


def unlucky(storage: Storage, folder: Path) -> Report:
    """A host with threads whose servers cannot start."""
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    (folder / "fading_app.py").write_text(
        "import pathlib\nfrom qml_mp import QmlApp\n"
        f"mark = pathlib.Path({str(folder / 'mark')!r})\n"
        "if mark.exists():\n    raise RuntimeError('gone stale')\n"
        "mark.touch()\napp = QmlApp()\n"
    )
    sys.path.append(str(folder))
    greedy = ServerConfig(worker_count=1, max_memory="1MiB")  # type: ignore[arg-type]
    nowhere = open_storage(f"sqlite:///{folder}/no/such/folder/jobs.db")
    vars(sys)["frozen"] = True  # as PyInstaller has it
    frozen = error_of(BackgroundJobServer(CONFIG, storage, NAME))
    del vars(sys)["frozen"]
    return {
        "frozen": frozen,
        "no module": error_of(BackgroundJobServer(CONFIG, storage, "no_such_module:app")),
        "in memory": error_of(BackgroundJobServer(CONFIG, storage, app.program)),
        "only in workers": error_of(BackgroundJobServer(CONFIG, storage, "fading_app:app")),
        "no storage": error_of(BackgroundJobServer(CONFIG, nowhere, NAME)),
        "memory": error_of(BackgroundJobServer(greedy, storage, NAME)),
    }


def beside_a_handle(storage: Storage, folder: Path) -> Report:
    """A script with one thread, which has a connection of its own to the file."""
    users = sqlite3.connect(storage.url.removeprefix("sqlite:///"))
    users.execute("SELECT count(*) FROM qml_jobs").fetchone()
    refused = error_of(BackgroundJobServer(CONFIG, storage, app.program))
    of_main = error_of(BackgroundJobServer(CONFIG, storage, "__main__:app"))
    try:
        BackgroundJobServer(CONFIG, storage, NAME).run()
    except QmlError as error:
        refused_run = [type(error).__name__, str(error)]
    server = BackgroundJobServer(CONFIG, storage, NAME)
    with server:
        run_a_job(storage)
        users.close()
        for _ in range(3):  # none takes itself for the last one who has the file open
            storage.close()
            run_a_job(storage)
    storage.close()
    forked = BackgroundJobServer(CONFIG, storage, app.program)
    with forked:
        run_a_job(storage)
    storage.close()
    return {
        "start": refused,
        "of main": of_main,
        "run": refused_run,
        "exit codes": [server.exit_code, forked.exit_code],
    }


def never_started(storage: Storage, folder: Path) -> Report:
    """A host that runs servers which cannot reach their storage, again and again."""
    counts = []
    for _ in range(3):
        nowhere = open_storage(f"sqlite:///{folder}/no/such/folder/jobs.db")
        try:
            BackgroundJobServer(CONFIG, nowhere, app.program).run()
        except StorageError:
            counts.append(len(os.listdir("/proc/self/fd")))
    return {"tries": len(counts), "leaves none open": counts[0] == counts[-1]}


def declaring(storage: Storage, folder: Path) -> Report:
    """A program that makes its server first and declares what it has below it, in part once it has run."""
    shop = QmlApp(storage.url, name="shop", retry_policy=RetryPolicy.none())
    server = BackgroundJobServer(CONFIG, storage, shop.program)

    def tell_another_way(_job: Job, _error: ErrorInfo) -> None:
        (folder / "told").write_text("another way")

    changed = BackgroundJobServer(CONFIG, storage, replace(shop.program, on_failure=tell_another_way))

    @shop.job()
    def fail() -> None:
        raise ValueError

    @shop.on_failure
    def tell(_job: Job, error: ErrorInfo) -> None:
        (folder / "told").write_text(error.type)

    def run(server: BackgroundJobServer, *, told: str) -> list[str]:
        """The ids of the templates while it runs."""
        path = folder / "told"
        path.unlink(missing_ok=True)  # by the server before
        with server:
            fail.enqueue()
            wait_until(lambda: path.exists() and path.read_text() == told, what=f"{told!r}")
            return sorted(template.id for template in storage.list_recurring_jobs())

    shop.recurring("@yearly", id="declared first")(fail)
    first = run(server, told="ValueError")
    shop.recurring("@yearly", id="declared since")(fail)
    second = run(server, told="ValueError")
    third = run(changed, told="another way")
    shop.close()
    storage.close()
    return {"first": first, "second": second, "of what was changed": third}


def forwarding(storage: Storage, folder: Path) -> Report:
    """A program whose jobs enqueue others by the storage that it has, which may be in its memory."""
    shop = QmlApp(storage.url, retry_policy=RetryPolicy.none())

    @shop.job()
    def forward() -> None:
        assert storage.get(storage.enqueue(Job.new("arrive"))) is not None

    @shop.job()
    def arrive() -> None: ...

    ids = storage.enqueue_many([Job.new("forward") for _ in range(60)])
    with BackgroundJobServer(CONFIG, storage, shop.program):
        wait_until(lambda: storage.job_counts()[StateName.SUCCEEDED] == 120, what="all jobs")
        ended = [job for job in map(storage.get, ids) if job is not None]
    return {
        "failures": sum(job.failures for job in ended),
        "crashes": sum(job.crashes for job in ended),
        "jobs": storage.job_counts()[StateName.SUCCEEDED],
    }


def error_of(server: BackgroundJobServer) -> list[object]:
    """The error's type and text, and whether a server is left."""
    try:
        server.start()
    except QmlError as error:
        return [type(error).__name__, str(error), server.is_running()]
    server.stop()
    return ["none", "", False]


def is_refused(server: BackgroundJobServer) -> bool:
    """Whether a second start is."""
    try:
        server.start()
    except ServerAlreadyRunning:
        return True
    return False


def run_a_job(storage: Storage) -> object:
    """The pid of the process that ran it."""
    job_id = storage.enqueue(Job.new("quick"))
    return wait_for_state(storage, job_id, StateName.SUCCEEDED).result


def handlers() -> list[object]:
    """The handler of every signal."""
    return [signal.getsignal(number) for number in sorted(signal.valid_signals())]


def surroundings() -> object:
    """What a server must leave alone."""
    wakeup_fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup_fd)
    mask = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    return handlers(), wakeup_fd, mask, threading.active_count(), os.getcwd(), os.getpgid(0)


if __name__ == "__main__":
    name, url, path = sys.argv[1:]
    host: Callable[[Storage, Path], Report] = globals()[name]
    print(json.dumps(host(open_storage(patient_url(url)), Path(path))))
    sys.stdout.flush()
    os._exit(0) if threading.active_count() > 1 else None
