"""Tests: a throw-away PostgreSQL cluster, kept and removed by a guard process.

The guard is this module run as a program. It starts the server, prints its URL, and waits for the
end of its standard input. That end comes however the test run ends (return, Ctrl-C, SIGKILL), so
the server is always stopped and its folder always removed.

    python -m tests.postgres_cluster [--durable]     serve until standard input ends
"""

from __future__ import annotations

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg import sql

from tests.postgres_programs import ClusterError, ServerPrograms, find_server_programs

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_REMOVE_TIMEOUT_S = (
    120.0  # of some ten thousand files, while others use the disk and the processors; judges nothing
)
_PORT_TRIES = 5
_CARELESS = (
    "fsync=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "checkpoint_timeout=1h",
    "autovacuum=off",
)  # fmt: skip
"""Neither what a power cut would leave nor order in tables that are gone in minutes is worth any work."""
_ASKED_FOR_BY_NUMBER, _RANDOM = range(20_000, 32_768), random.SystemRandom()
SHUTDOWNS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_ROOT = Path(__file__).resolve().parent.parent


URL_VARIABLE = "QML_MP_TEST_URL"
"""Set it to the URL of a database to use instead of a throw-away cluster."""


def remove_schema(database: str, schema: str) -> None:
    """Remove a test's schema from somebody's own database; a throw-away cluster goes as a whole."""
    if os.environ.get(URL_VARIABLE):
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))


@contextmanager
def throwaway_cluster(*, durable: bool = False) -> Iterator[str]:
    """Serve a fresh cluster for the length of the block; yields the URL of its database. A durable one waits
    for the disk as any server does, which only a measurement needs."""
    with controlled_cluster(durable=durable) as cluster:
        yield cluster.url


@dataclass(kw_only=True)
class Cluster:
    """One that runs, as its user sees it."""

    url: str
    guard: subprocess.Popen[str]

    def stop(self, mode: str) -> None:
        """Shut the server down, "fast" or "immediate"; returns when it is gone. `start` brings it back."""
        self._ask(mode)

    def start(self) -> None:
        """Serve the same database at the same place again; returns when connections are accepted."""
        self._ask("start")

    def _ask(self, what: str) -> None:
        assert self.guard.stdin is not None
        assert self.guard.stdout is not None
        self.guard.stdin.write(f"{what}\n")
        self.guard.stdin.flush()
        answer = self.guard.stdout.readline().strip()
        if answer != "done":
            raise ClusterError(answer or "The guard of the PostgreSQL cluster died without a word.")


@contextmanager
def controlled_cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """`throwaway_cluster` whose server can be stopped and started again."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "tests.postgres_cluster", *(["--durable"] if durable else [])],
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C at the terminal is for the tests, not for their server
    )
    assert guard.stdin is not None
    assert guard.stdout is not None
    try:
        answer = guard.stdout.readline().strip()
        if not answer.startswith("postgresql://"):
            raise ClusterError(answer or "The guard of the PostgreSQL cluster died without a word.")
        yield Cluster(url=answer, guard=guard)
    finally:
        guard.stdin.close()
        guard.wait(_STOP_TIMEOUT_S + _REMOVE_TIMEOUT_S)
        guard.stdout.close()


def _guard(*, durable: bool) -> int:
    """Start, print the URL (or the error) as one line, do what stdin says until its end, stop and remove."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # As root the folder must be one that the unprivileged user can reach, whatever TMPDIR says.
    folder = Path(tempfile.mkdtemp(prefix="qml-mp-pg-", dir="/tmp" if os.geteuid() == 0 else None))
    server: ClusterServer | None = None
    try:
        user = unprivileged_user()
        programs = find_server_programs()
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
            programs = programs.reachable_for(user, folder / "programs")
        initialise(programs, folder, user)
        server = ClusterServer(programs, folder, user, durable=durable)
        server.start_anywhere()
        print(server.url, flush=True)
        for line in sys.stdin:
            server.obey(line.strip())
            print("done", flush=True)
        return 0
    except (ClusterError, OSError) as error:
        print(" ".join(str(error).split()), flush=True)
        return 1
    finally:
        if server is not None:
            server.stop(SHUTDOWNS["immediate"])  # nothing in the cluster is worth a checkpoint
        shutil.rmtree(folder, ignore_errors=True)


def unprivileged_user() -> pwd.struct_passwd | None:
    """Whom to run the server as; None: as ourselves. The server refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ClusterError("PostgreSQL refuses to run as root, and there is no user postgres or nobody.")


def initialise(programs: ServerPrograms, folder: Path, user: pwd.struct_passwd | None) -> None:
    command: list[str | Path] = [
        programs.folder / "initdb", "--pgdata", folder / "data", "--username", "postgres", "--auth", "trust",
        "--encoding", "UTF8", "--locale", "C",
        "--no-sync",  # an empty cluster is not worth a wait for the disk
    ]  # fmt: skip
    with (folder / "initdb.log").open("wb") as log:
        status = _run_as(command, folder, user, log.fileno()).wait()
    if status != 0:
        raise ClusterError(f"initdb failed: {_tail(folder / 'initdb.log')}")


class ClusterServer:
    """The server of the cluster in the folder."""

    def __init__(
        self, programs: ServerPrograms, folder: Path, user: pwd.struct_passwd | None, *, durable: bool
    ) -> None:
        self._programs = programs
        self._folder = folder
        self._user = user
        self._durable = durable
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start_anywhere(self) -> None:
        """At a free port. Another program may take it first: then try again."""
        for _ in range(_PORT_TRIES):
            self._port = free_port()
            if self._start():
                return
            if "Address already in use" not in _tail(self._folder / "server.log"):
                break
        raise ClusterError(f"The PostgreSQL server did not start: {_tail(self._folder / 'server.log')}")

    def obey(self, command: str) -> None:
        """What the other side wants."""
        if command in SHUTDOWNS:
            self.stop(SHUTDOWNS[command])
        elif not self._start():
            raise ClusterError(
                f"The PostgreSQL server did not come back: {_tail(self._folder / 'server.log')}"
            )

    def stop(self, how: signal.Signals) -> None:
        """Harmless when it does not run."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> bool:
        command: list[str | Path] = [self._programs.folder / "postgres", "-D", self._folder / "data"]
        command += ["-k", self._folder, "-p", str(self._port)]
        careless = () if self._durable else _CARELESS
        for setting in ("listen_addresses=127.0.0.1", "max_connections=200", *careless):
            command += ["-c", setting]
        with (self._folder / "server.log").open("wb") as log:
            self._process = _run_as(command, self._folder, self._user, log.fileno())
        ready = False
        try:
            ready = _became_ready(self._process, self._folder / "data" / "postmaster.pid")
        finally:
            if not ready:
                self.stop(SHUTDOWNS["immediate"])
        return ready


def _run_as(
    command: list[str | Path], folder: Path, user: pwd.struct_passwd | None, log_fd: int
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=log_fd,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else [],
        # Settings of the caller (PGDATA, PGOPTIONS, …) are not meant for this server.
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
    )


def _became_ready(server: subprocess.Popen[bytes], pid_file: Path) -> bool:
    """Wait as pg_ctl does: line 8 of postmaster.pid says "ready" once connections are accepted."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            lines = pid_file.read_text().splitlines()
        except OSError:
            lines = []
        if len(lines) >= 8 and lines[7].strip() == "ready":
            return True
        time.sleep(0.02)  # between two looks at a file, as pg_ctl does
    return False


def free_port() -> int:
    """None of those that the system gives to whoever asks for any: one might be gone before it is used."""
    while True:
        port = _RANDOM.choice(_ASKED_FOR_BY_NUMBER)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]


if __name__ == "__main__":
    raise SystemExit(_guard(durable="--durable" in sys.argv[1:]))
