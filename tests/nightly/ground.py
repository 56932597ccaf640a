"""Tests: where a scenario takes place: a fresh storage with its audit, a folder, and servers."""

from __future__ import annotations

import contextlib
import os
import random
import select
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import psycopg
from psycopg import sql

from qml_mp import host
from qml_mp.core.server_info import WorkerInfo
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.audit import Audit
from tests.nightly.judge import Kills
from tests.processes.harness import Server, wait_until
from tests.processes.journal import Line, parse_journal, read_journal
from tests.storage.helpers import patient_url

APP = "tests.nightly.apps:app"
_FIRST_BOOT_S = 60.0
_MOST_CLAIMS = 100
_LOOKS, _MOMENT_S = 60, 0.02  # for longer than a process without a processor stands still, as a rule
_NOTES = "worker/outcome.recorded=note"


@dataclass(kw_only=True, eq=False)
class Ground:
    """One storage and what happens on it. Belongs to one thread."""

    backend: str
    url: str
    folder: Path
    rng: random.Random
    storage: Storage
    impatient: Storage
    """Another client, that waits for no lock for long."""
    audit: Audit
    servers: list[Server] = field(default_factory=list)

    def server(self, *flags: str, app: str = APP, failpoint: str = "", **environment: str) -> Server:
        """A server on this storage, not started yet, whose workers may hold as many claims as there can be,
        and note in the journal what is recorded. Its current directory is the ground's folder, by which every
        process of it is found again."""
        settings = {**environment_of({"fetch_batch_size": _MOST_CLAIMS}), **environment}
        one = Server(
            url=self.url, folder=self.folder, app=app, flags=flags, environment=settings, cwd=self.folder,
            program=("-m", "tests.failpoints", f"{_NOTES};{failpoint}"),
        )  # fmt: skip
        self.servers.append(one)
        return one

    def start(self, server: Server, *, ready: int) -> Server:
        """Start it and wait for so many workers."""
        server.start(ready=None)
        wait_until(
            lambda: len(self.workers(server)) >= ready,
            within_s=_FIRST_BOOT_S,
            what=f"{ready} workers; {server.log()[-2000:]}",
        )
        return server

    def workers(self, server: Server) -> list[WorkerInfo]:
        """The live registered workers of the server."""
        own = {info.id for info in self.storage.list_servers() if info.process.pid == server.pid}
        return [
            info
            for info in self.storage.list_workers()
            if info.server_id in own and host.is_alive(info.process)
        ]

    def is_alone(self, server: Server) -> bool:
        """Whether nothing is registered but this server and its workers: all before it are proved dead."""
        servers = {info.id: info.process.pid for info in self.storage.list_servers()}
        return [*servers.values()] == [server.pid] and all(
            info.server_id in servers for info in self.storage.list_workers()
        )

    def journal(self) -> list[Line]:
        """All that the jobs wrote."""
        return read_journal(self.folder / "journal")

    def end_servers(self) -> None:
        """Kill the supervisors that still run."""
        for server in self.servers:
            server.clean_up()

    def open_gate(self, job_id: str) -> None:
        """Let the `gated` job end."""
        (self.folder / f"gate-{job_id}").touch()

    def leftovers(self) -> list[int]:
        """Processes that live in the ground's folder; none when nothing runs."""
        return [pid for pid in _all_pids() if _cwd_of(pid) == str(self.folder)]


class JournalTail:
    """Reads on in the journal where it stopped."""

    def __init__(self, ground: Ground) -> None:
        self._path = ground.folder / "journal"
        self._offset = 0
        self._lines: list[Line] = []

    def lines(self) -> list[Line]:
        """All lines so far."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offset += len(whole)
            self._lines += parse_journal(whole.decode())
        return self._lines

    def start_of(self, job_id: str, claim_seq: int | None = None) -> Line | None:
        """The newest run of the job (or of that claim) that has begun."""
        for line in reversed(self.lines()):
            if line.job_id == job_id and line.what == "start" and claim_seq in (None, line.claim_seq):
                return line
        return None


@contextlib.contextmanager
def fresh_ground(backend: str, postgres_url: str | None, *, seed: object) -> Iterator[Ground]:
    """A ground of its own; in the end its processes are ended and its storage is removed."""
    with contextlib.ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="qml-mp-soak-")).resolve()
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        url = f"sqlite:///{folder / 'jobs.db'}"
        if backend == "postgres":
            assert postgres_url is not None
            url = cleanup.enter_context(_fresh_schema(postgres_url))
        storage = cleanup.enter_context(contextlib.closing(open_storage(patient_url(url))))
        storage.migrate()
        audit = cleanup.enter_context(contextlib.closing(Audit(url)))
        audit.install()
        impatient = open_storage(url, patience=timedelta(seconds=0.5))
        cleanup.enter_context(contextlib.closing(impatient))
        ground = Ground(
            backend=backend, url=url, folder=folder, rng=random.Random(f"{seed}"), storage=storage,
            impatient=impatient, audit=audit,
        )  # fmt: skip
        cleanup.callback(_end, ground.leftovers)
        cleanup.callback(ground.end_servers)
        yield ground


@contextlib.contextmanager
def _fresh_schema(postgres_url: str) -> Iterator[str]:
    """The URL of the database with a schema that is removed in the end."""
    schema = f"soak_{uuid.uuid4().hex[:12]}"
    yield f"{postgres_url}{'&' if '?' in postgres_url else '?'}schema={schema}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


def kill_a_worker(ground: Ground, kills: Kills) -> None:
    """SIGKILL to a random live worker, of whatever server."""
    living = [info for info in ground.storage.list_workers() if host.is_alive(info.process)]
    if not living:
        return
    victim = ground.rng.choice(sorted(living, key=lambda info: info.id))
    # Noted first: it may be dead, and its job taken up again, before the next line runs.
    kills.workers.add(victim.id)
    kills.count += 1
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim.process.pid, signal.SIGKILL)


def pause(seconds: float) -> None:
    """Between two blows: this is the load itself, not a wait for something to come about."""
    select.select([], [], [], seconds)


def descendants(pid: int) -> list[int]:
    """The children of the process, and theirs."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(child) for child in text.split()]
    return [*children, *(grandchild for child in children for grandchild in descendants(child))]


def state_of(server: Server) -> tuple[int, int]:
    """(open descriptors, resident bytes) of the supervisor; of many looks the fewest descriptors,
    because it opens its storage and its wake-ups anew after each fork."""
    process = Path(f"/proc/{server.pid}")
    looks = []
    for _ in range(_LOOKS):
        looks.append(len(os.listdir(process / "fd")))
        pause(_MOMENT_S)
    resident_pages = int((process / "statm").read_text().split()[1])
    return min(looks), resident_pages * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Sees exactly when processes die. Closes its descriptors when it is left."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._fds: dict[int, int] = {}
        self.died_ns: dict[int, int] = {}
        """Pid to the instant at which its death was seen."""
        for pid in pids:
            try:
                self._fds[os.pidfd_open(pid)] = pid
            except ProcessLookupError:
                self.died_ns[pid] = time.monotonic_ns()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    @property
    def alive(self) -> list[int]:
        return [pid for pid in self._fds.values() if pid not in self.died_ns]

    def until_all_died(self, *, within_s: float) -> bool:
        """Wait for all of them; False when the time is over first."""
        deadline = time.monotonic() + within_s
        poll = select.poll()
        for fd, pid in self._fds.items():
            if pid not in self.died_ns:
                poll.register(fd, select.POLLIN)
        while self.alive and (left_s := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1000 + 1):
                self.died_ns[self._fds[fd]] = time.monotonic_ns()
                poll.unregister(fd)
        return not self.alive


def environment_of(settings: Mapping[str, float | int | str]) -> dict[str, str]:
    """Settings of a server as environment variables."""
    return {f"QML_MP_{name.upper()}": str(value) for name, value in settings.items()}


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _cwd_of(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return None  # gone, or not ours


def _end(pids: Callable[[], list[int]]) -> None:
    """Kill what is left in the ground's own folder, and wait until it is gone."""
    deadline = time.monotonic() + 10
    while (left := pids()) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        pause(0.01)
