"""Tests: supervisors as copies of one small process that has imported what they need.

A scenario of a fraction of a second needs a supervisor or two. To fork them from the test itself would cost
each of them, its worker and its guardian the pages of a whole test run.

    python -m tests.processes.supervisors     for each request on standard input: fork, tell pid and exit code
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import IO

from qml_mp.child import loop
from qml_mp.child.source import LoadedProgram
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.supervisor.server import Supervisor
from qml_mp.supervisor.urgent import STORAGE_PATIENCE
from tests import failpoints
from tests.processes.apps_storage_faults import app
from tests.processes.harness import ROOT
from tests.processes.journal import JOURNAL

CONFIG = ServerConfig(
    worker_count=1,
    fetch_batch_size=100,
    polling_interval=timedelta(milliseconds=50),
    scheduler_poll_interval=timedelta(milliseconds=50),
    shutdown_timeout=timedelta(seconds=10),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a supervisor is to be."""

    url: str
    armed: str
    """The failpoints."""
    journal: str
    output: str
    """Where it and its workers write to."""
    claims_while_jobs_run: bool = False
    """Also with jobs of no length."""


class Supervisors:
    """Where they come from: one process, and one supervisor of it at a time."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests = requests
        self._answers = answers

    def start(self, role: Role) -> Running:
        """A new one. The one before must have ended."""
        self._requests.write(json.dumps(asdict(role)).encode() + b"\n")
        return Running(int(self._answers.readline()), self._answers)


class Running:
    """A supervisor. Its pid is nobody else's before the next one is started."""

    def __init__(self, pid: int, answers: IO[bytes]) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._answers = answers

    def has_ended(self, within_s: float = 0.0) -> bool:
        """Whether it has, or does so in that time; then there is its exit code."""
        if self.exit_code is None and select.select([self._answers], [], [], within_s)[0]:
            self.exit_code = int(self._answers.readline())
        return self.exit_code is not None


@contextmanager
def supervisors() -> Iterator[Supervisors]:
    """Have the process within the block. It is no copy of the one that commands are copies of: that one has
    imported all of the project, and what is twice as large costs each fork a sixth more."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.processes.supervisors"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        yield Supervisors(process.stdin, process.stdout)
        process.stdin.close()


def _serve() -> None:
    """Fork what each line asks for, and collect it when the next one comes: until then its pid is its own."""
    importlib.import_module("qml_mp.storage.postgres.database")  # which the project imports at first use
    gc.collect()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, whose end is the end of this too
    ended = None
    for line in sys.stdin:
        if ended is not None:
            os.waitpid(ended, 0)
        pid = os.fork()
        if pid == 0:
            _be(Role(**json.loads(line)))
        print(pid, flush=True)
        ending = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ending is not None
        print(ending.si_status if ending.si_code == os.CLD_EXITED else -ending.si_status, flush=True)
        ended = pid


def _be(role: Role) -> None:
    code = 70
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDONLY)
        output = os.open(role.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number, fd in enumerate((nothing, output, output)):
            os.dup2(fd, number)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)s %(message)s", force=True)
        os.environ[JOURNAL] = role.journal
        failpoints.arm(role.armed)
        failpoints.leave_patiently()
        if role.claims_while_jobs_run:
            setattr(loop, "_WORTH_S", 0.0)  # noqa: B010  # a constant, for whoever types it
        storage = open_storage(role.url, patience=STORAGE_PATIENCE)
        code = Supervisor(CONFIG, storage, LoadedProgram(program=app.program)).run()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
