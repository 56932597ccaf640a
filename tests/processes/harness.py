"""Tests: a real server in a real process, started and watched as its user would."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.server_info import ServerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.processes.journal import JOURNAL, Line, read_journal
from tests.storage.helpers import patient_url
from tests.until import PATIENCE_S as PATIENCE_S
from tests.until import wait_until as wait_until
from tests.warm import Process, launch

ROOT = Path(__file__).parents[2]
APP = "tests.processes.jobs_app:app"


@dataclass(kw_only=True, eq=False)
class Server:
    """A `qml-mp start` of which the test is the parent."""

    url: str
    folder: Path
    app: str = APP
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = ROOT
    output: int | None = None
    """A descriptor that takes its standard output and error in the log's stead."""
    program: tuple[str, ...] = ("-m", "qml_mp")
    """What Python runs, in front of the command's arguments."""
    prefix: tuple[str, ...] = ()
    """The program, and its arguments, that starts it."""
    fresh: bool = False
    """Whether it must be an interpreter that was started for it (see tests/warm.py)."""
    process: Process | None = None
    registry: Storage | None = None
    """Whom to ask for workers, many times a second; None: a client of its own, opened then."""
    _own_registry: Storage | None = None

    @property
    def storage(self) -> Storage:
        """A client's own view of the storage."""
        return open_storage(patient_url(self.url))

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self, *, ready: int | None = 1) -> Server:
        """Start it and wait until so many workers are registered (None: do not wait)."""
        command = [sys.executable, *self.program, "-A", self.app, "--url", self.url, "start", *self.flags]
        with (self.folder / "server.log").open("ab") as log, open(os.devnull, "rb") as nothing:
            output = log.fileno() if self.output is None else self.output
            self.process = launch(
                [*self.prefix, *command],
                cwd=self.cwd, env=self._environment(), stdin=nothing.fileno(), stdout=output, stderr=output,
                fresh=self.fresh,
            )  # fmt: skip
        if ready is not None:
            wait_until(
                lambda: len(self.worker_pids()) >= ready, what=lambda: f"{ready} workers; {self.log()}"
            )
        return self

    def worker_pids(self) -> dict[int, int]:
        """Number to pid of the live workers of this server, from the registry."""
        registry = self.registry or self._own_registry
        if registry is None:
            registry = self._own_registry = self.storage
        servers = {server.id for server in registry.list_servers() if server.process.pid == self.pid}
        workers = [worker for worker in registry.list_workers() if worker.server_id in servers]
        return {worker.number: worker.process.pid for worker in workers if host.is_alive(worker.process)}

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, within_s: float = PATIENCE_S) -> int:
        """The exit code, when it comes by itself."""
        assert self.process is not None
        return self.process.wait(within_s)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def log(self) -> str:
        """What it printed."""
        return (self.folder / "server.log").read_text(errors="replace")

    def journal(self) -> list[Line]:
        """What the jobs wrote."""
        return read_journal(self.folder / "journal")

    def starts(self) -> list[str]:
        """The job of each run that has begun, in order."""
        return [line.job_id for line in self.journal() if line.what == "start"]

    def wait_until_running(self, job_id: str | None = None, *, claim_seq: int | None = None) -> Line:
        """The line with which the first run began: of this job, under this claim, if these are given."""

        def is_it(line: Line) -> bool:
            return (
                line.what == "start" and job_id in (None, line.job_id) and claim_seq in (None, line.claim_seq)
            )

        return wait_until(
            lambda: next(filter(is_it, self.journal()), None),
            what=lambda: f"the start of {job_id or 'a job'}; {self.log()}",
        )

    def clean_up(self) -> None:
        """End whatever is left, by id, with the workers that the registry still names."""
        if self._own_registry is not None:
            self._own_registry.close()
            self._own_registry = None
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
        return {**kept, JOURNAL: str(self.folder / "journal"), "PYTHONPATH": str(ROOT), **self.environment}


def few(names: str, quick: Sequence[object], *, nightly: Iterable[object]) -> pytest.MarkDecorator:
    """`parametrize` with rows for every run, and with the rest of the matrix for the night."""

    def row(values: object) -> ParameterSet:
        return pytest.param(*(values if isinstance(values, tuple) else (values,)), marks=pytest.mark.nightly)

    return pytest.mark.parametrize(names, [*quick, *map(row, nightly)])


def enqueue(storage: Storage, method: str, **arguments: object) -> str:
    """One job by name; its id."""
    return storage.enqueue(Job.new(method, json.loads(json.dumps(arguments))))


def row_of(server: Server, storage: Storage) -> ServerInfo:
    """What the registry says of the server."""
    return next(row for row in storage.list_servers() if row.process.pid == server.pid)


def wait_for_a_beat(server: Server, storage: Storage) -> None:
    """Until its row is bumped once more."""
    before = row_of(server, storage).last_heartbeat
    wait_until(lambda: row_of(server, storage).last_heartbeat > before, what=server.log)


def state_of(storage: Storage, job_id: str) -> StateName:
    job = storage.get(job_id)
    assert job is not None
    return job.state_name


def wait_for_state(storage: Storage, job_id: str, *wanted: StateName) -> Job:
    """The job, as soon as it is in one of the states."""

    def find() -> Job | None:
        job = storage.get(job_id)
        return job if job is not None and job.state_name in wanted else None

    return wait_until(find, what=f"{' or '.join(wanted)}")


def result_of(storage: Storage, method: str, **arguments: object) -> object:
    """What a job returns, once it has succeeded."""
    return wait_for_state(storage, enqueue(storage, method, **arguments), StateName.SUCCEEDED).result


def is_stopped(pid: int) -> bool:
    """Whether a SIGSTOP has taken effect."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stop_between_writes(storage: Storage, pid: int) -> None:
    """SIGSTOP, at a moment at which the process does not keep others out of an SQLite file."""
    impatient = open_storage(storage.url, patience=timedelta(milliseconds=200))
    while True:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(pid), what="the stop")
        try:
            impatient.release_lock("nothing", "nobody")
        except StorageUnavailable:
            os.kill(pid, signal.SIGCONT)
            continue
        impatient.close()
        return


def left_in_registry(storage: Storage, log: str) -> list[str]:
    """The ids of servers and workers that are registered once all have left, but for servers that have said
    why: their database took longer than they wait for it, and the next one of the machine removes them."""
    servers = [row.id for row in storage.list_servers()]
    workers = [row.id for row in storage.list_workers() if row.server_id not in servers]
    return workers + servers[log.count("Could not leave the registry") :]


def is_gone(pid: int) -> bool:
    """No such process, or one that nobody has collected yet."""
    try:
        return host.is_alive(host.identity(pid)) is not True
    except ProcessLookupError:
        return True
