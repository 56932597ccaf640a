"""Tests: a throw-away PostgreSQL cluster, kept and removed by a guard process.

The guard is this module run as a program. It starts the server, prints its URL, and waits for the
end of its standard input. That end comes however the test run ends (return, Ctrl-C, SIGKILL), so
the server is always stopped and its folder always removed.

    python -m tests.postgres_cluster [--durable]     serve until standard input ends
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from tests.postgres_programs import ClusterError, ServerPrograms, find_server_programs

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 20.0
_PORT_TRIES = 5
_CARELESS = (
    "fsync=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "checkpoint_timeout=1h",
    "autovacuum=off",
)  # fmt: skip
"""Neither what a power cut would leave nor order in tables that are gone in minutes is worth any work."""
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
        yield answer
    finally:
        guard.stdin.close()
        guard.wait(_STOP_TIMEOUT_S + 10)
        guard.stdout.close()


def _guard(*, durable: bool) -> int:
    """Start, print the URL (or the error) as one line, wait for the end of stdin, stop and remove."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # As root the folder must be one that the unprivileged user can reach, whatever TMPDIR says.
    folder = Path(tempfile.mkdtemp(prefix="qml-mp-pg-", dir="/tmp" if os.geteuid() == 0 else None))
    server: subprocess.Popen[bytes] | None = None
    try:
        try:
            programs = find_server_programs()
            user = unprivileged_user()
            if user is not None:
                os.chown(folder, user.pw_uid, user.pw_gid)
                programs = programs.reachable_for(user, folder / "programs")
            _initialise(programs, folder, user)
            server, url = _start(programs, folder, user, durable=durable)
        except (ClusterError, OSError) as error:
            print(" ".join(str(error).split()), flush=True)
            return 1
        print(url, flush=True)
        sys.stdin.read()
        return 0
    finally:
        if server is not None:
            _stop(server)
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


def _initialise(programs: ServerPrograms, folder: Path, user: pwd.struct_passwd | None) -> None:
    command: list[str | Path] = [
        programs.folder / "initdb", "--pgdata", folder / "data", "--username", "postgres", "--auth", "trust",
        "--encoding", "UTF8", "--locale", "C",
        "--no-sync",  # an empty cluster is not worth a wait for the disk
    ]  # fmt: skip
    with (folder / "initdb.log").open("wb") as log:
        status = _run_as(command, folder, user, log.fileno()).wait()
    if status != 0:
        raise ClusterError(f"initdb failed: {_tail(folder / 'initdb.log')}")


def _start(
    programs: ServerPrograms, folder: Path, user: pwd.struct_passwd | None, *, durable: bool
) -> tuple[subprocess.Popen[bytes], str]:
    """A running server and its URL. Another program may take the free port first: then try again."""
    for _ in range(_PORT_TRIES):
        port = free_port()
        command: list[str | Path] = [programs.folder / "postgres", "-D", folder / "data", "-k", folder]
        command += ["-p", str(port)]
        for setting in ("listen_addresses=127.0.0.1", "max_connections=200", *(() if durable else _CARELESS)):
            command += ["-c", setting]
        with (folder / "server.log").open("wb") as log:
            server = _run_as(command, folder, user, log.fileno())
        ready = False
        try:
            ready = _became_ready(server, folder / "data" / "postmaster.pid")
        finally:
            if not ready:
                _stop(server)
        if ready:
            return server, f"postgresql://postgres@127.0.0.1:{port}/postgres"
        if "Address already in use" not in _tail(folder / "server.log"):
            break
    raise ClusterError(f"The PostgreSQL server did not start: {_tail(folder / 'server.log')}")


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
        time.sleep(0.02)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Immediate shutdown: nothing in the cluster is worth a checkpoint."""
    server.send_signal(signal.SIGQUIT)
    try:
        server.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:]


if __name__ == "__main__":
    raise SystemExit(_guard(durable="--durable" in sys.argv[1:]))
