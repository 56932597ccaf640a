"""Benchmark: one run of one system, on a fresh database and in a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from tests.bench.cpu import cpu_s_of_programs, cpu_s_of_sessions
from tests.bench.place import Place
from tests.bench.system import Backend, Command, System
from tests.bench.watch import Timing, Watcher
from tests.warm import launch

ROOT = Path(__file__).parents[2]

_PATHS = {
    "PYTHONPATH": str(ROOT),
    # A peer may start `python` by that name.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
}
_BOOT_S = 60.0
_STOP_S = 10.0
_REPLY_S = 300.0


class RunFailed(Exception):
    """A system did not do what was asked of it; the text says what, with the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where all runs take place."""

    postgres_url: str | None
    turns_per_ms: int
    longest_s: float
    """How long a run is watched at most."""

    @contextlib.contextmanager
    def run(self, system: System, *, workers: int, has_records: bool = False) -> Iterator[Run]:
        """The system installed, with its producer waiting; no worker runs yet. All is removed in the end."""
        with contextlib.ExitStack() as cleanup:
            folder = Path(tempfile.mkdtemp(prefix="qml-mp-bench-")).resolve()
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            place = Place(
                folder=folder, url=cleanup.enter_context(self._database(system)), workers=workers,
                turns_per_ms=self.turns_per_ms, has_records=has_records,
            )  # fmt: skip
            place.file.parent.mkdir()
            run = Run(system=system, place=place, longest_s=self.longest_s)
            cleanup.callback(run.stop)
            for command in system.install(place):
                run.start(command).finish()
            yield run

    @contextlib.contextmanager
    def _database(self, system: System) -> Iterator[str]:
        if system.backend is not Backend.POSTGRES:
            yield ""
            return
        assert self.postgres_url is not None
        with _fresh_database(self.postgres_url) as url:
            yield url


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What came of a backlog."""

    timing: Timing
    cpu_us: float | None
    """Processor time that the system's processes used for a job; None: not known."""
    database_cpu_us: float | None
    """The same of PostgreSQL's sessions."""


@dataclass(kw_only=True, eq=False)
class Run:
    """Its processes; `stop` ends them."""

    system: System
    place: Place
    longest_s: float
    _programs: list[Program] = field(default_factory=list, init=False)
    _producer: Program | None = field(default=None, init=False)
    _enqueued: int = field(default=0, init=False)

    def start(self, command: Command, *, answers: bool = False) -> Program:
        """A program of the system."""
        program = Program(command, self.system, self.place, answers=answers)
        self._programs.append(program)
        return program

    def start_workers(self) -> list[Program]:
        """All of them; they may take a while until they run jobs."""
        return [self.start(command) for command in self.system.workers(self.place)]

    def enqueue(
        self, count: int, kinds: Sequence[tuple[float, str]] = ((0.0, "spin"),), *, how: str = "bulk"
    ) -> list[tuple[int, int]]:
        """So many jobs, of these kinds in turn, in bulk or single: the ns of each call and of its return."""
        if self._producer is None:
            self._producer = self.start(self.system.program("produce"), answers=True)
            self._producer.answer()
        first, self._enqueued = self._enqueued, self._enqueued + count
        stamps = self._producer.ask([how, first, count, list(kinds)])
        return [(began, ended) for began, ended in stamps]

    def settle(self) -> None:
        """Let the database do at once what it would soon do by itself in the middle of the measurement."""
        if self.system.backend is Backend.POSTGRES:
            with psycopg.connect(self.place.url, autocommit=True) as connection:
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")

    def drain(self, count: int) -> Drained:
        """Start the workers and time the jobs that wait."""
        watcher = Watcher(self.place.bytes)
        workers = self.start_workers()

        def is_hopeless() -> bool:
            return not any(worker.is_running() for worker in workers)

        first = watcher.wait(1, within_s=_BOOT_S, is_hopeless=is_hopeless)
        before = self._cpu_s(workers)
        done = watcher.wait(count, within_s=self.longest_s, is_hopeless=is_hopeless)
        after = self._cpu_s(workers)
        if not done:
            raise RunFailed(f"No job ran. {self.log()}")
        if done > count:
            raise RunFailed(f"{count} jobs were enqueued, and {done} ran.")
        if before is None or after is None or done == first:
            return Drained(timing=watcher.timing(), cpu_us=None, database_cpu_us=None)
        own, database = ((now - then) * 1e6 / (done - first) for then, now in zip(before, after, strict=True))
        return Drained(
            timing=watcher.timing(), cpu_us=own, database_cpu_us=database if after[1] > before[1] else None
        )

    def _cpu_s(self, workers: Sequence[Program]) -> tuple[float, float] | None:
        """Of the workers and of the database's sessions so far; None: one has ended, and its time is lost."""
        own = cpu_s_of_programs(worker.pid for worker in workers)
        database = cpu_s_of_sessions(self.place.url.rpartition("/")[2]) if self.place.url else 0.0
        return (own, database) if all(worker.is_running() for worker in workers) else None

    def log(self) -> str:
        """The end of what all its programs printed."""
        return "\n".join(filter(None, (program.log()[-1500:] for program in self._programs)))

    def stop(self) -> None:
        """End all its processes."""
        for program in self._programs:
            program.interrupt()
        deadline = time.monotonic() + _STOP_S
        for program in self._programs:
            program.end(max(0.0, deadline - time.monotonic()))


class Program:
    """A process of a system, in a session of its own."""

    def __init__(self, command: Command, system: System, place: Place, *, answers: bool) -> None:
        """`answers`: it is the producer, which is asked and answers through its standard streams."""
        self._command = command
        self._log = place.folder / f"log-{time.monotonic_ns()}"
        self._asked: socket.socket | None = None
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
        with contextlib.ExitStack() as theirs:
            log = theirs.enter_context(self._log.open("wb")).fileno()
            stdin, stdout = theirs.enter_context(open(os.devnull, "rb")).fileno(), log
            if answers:
                self._asked, other = socket.socketpair()
                stdin = stdout = theirs.enter_context(other).fileno()
            self._process = launch(
                command, cwd=ROOT, new_session=True, stdin=stdin, stdout=stdout, stderr=log,
                env={**kept, **_PATHS, **place.environment(), **system.environment()},
            )  # fmt: skip
        self._lines = None if self._asked is None else self._asked.makefile()

    def finish(self) -> None:
        """Wait until it has ended by itself, and well."""
        if self._process.wait(_BOOT_S) != 0:
            raise RunFailed(f"{' '.join(self._command)} failed: {self.log()[-1500:]}")

    def ask(self, request: object) -> list[list[int]]:
        """One line to the producer, and its answer."""
        assert self._asked is not None
        self._asked.sendall(json.dumps(request).encode() + b"\n")
        stamps: list[list[int]] = self.answer()
        return stamps

    def answer(self) -> list[list[int]]:
        """The next line of the producer."""
        assert self._lines is not None
        line = self._lines.readline()
        if not line:
            raise RunFailed(f"The producer ended: {self.log()[-1500:]}")
        answer: list[list[int]] = json.loads(line)
        return answer

    def log(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_running(self) -> bool:
        return self._process.poll() is None

    def interrupt(self) -> None:
        """Ask it to end."""
        if self._asked is not None:
            with contextlib.suppress(OSError):  # it has ended
                self._asked.shutdown(socket.SHUT_WR)
        elif self.is_running():
            self._process.send_signal(signal.SIGTERM)

    def end(self, within_s: float) -> None:
        """Wait for its end; what is left then of its process group is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(within_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._lines is not None and self._asked is not None:
            self._lines.close()
            self._asked.close()


@contextlib.contextmanager
def _fresh_database(postgres_url: str) -> Iterator[str]:
    """A database of the run's own, because peers do not all take a schema's name."""
    name = f"bench_{time.time_ns()}"
    with contextlib.closing(psycopg.connect(postgres_url, autocommit=True)) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            yield urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
