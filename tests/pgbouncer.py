"""Tests: a real PgBouncer before a real PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.postgres_cluster import free_port, unprivileged_user
from tests.until import wait_until

_START_TIMEOUT_S = 20.0
_HOW_TO_INSTALL = (
    "This test needs PgBouncer, which is neither in PATH nor in /usr/sbin. Install it (Debian: apt-get "
    "install pgbouncer, which scripts/test does as root; macOS: brew install pgbouncer)."
)


class PgBouncerError(Exception):
    """It cannot be started; the text is its log."""


@dataclass(kw_only=True)
class PgBouncer:
    """One that runs."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    def before(self, url: str) -> str:
        """The URL of the same database by the way of this pooler; its login stays in the pooler."""
        return urlsplit(url)._replace(netloc=f"127.0.0.1:{self.port}").geturl()

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")


@contextmanager
def pgbouncer(
    postgres_url: str, *, pool_mode: str = "transaction", pool_size: int = 2
) -> Iterator[PgBouncer]:
    """Run one before the server of the URL for the length of the block. Raises `PgBouncerError`; skips the
    test where there is none."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip(_HOW_TO_INSTALL)  # no wheel brings it, and not everybody may install programs
    user = unprivileged_user()
    folder = Path(tempfile.mkdtemp(prefix="qml-mp-pgbouncer-", dir="/tmp" if user else None))
    port = free_port()
    try:
        (folder / "ini").write_text(_ini(postgres_url, folder, port, pool_mode, pool_size))
        if user is not None:  # it refuses to run as root
            for path in (folder, folder / "ini"):
                os.chown(path, user.pw_uid, user.pw_gid)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, folder / "ini"], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                user=None if user is None else user.pw_uid, group=None if user is None else user.pw_gid,
                extra_groups=None if user is None else [],
            )  # fmt: skip
        running = PgBouncer(port=port, folder=folder, process=process)
        try:
            _wait_for(running)
            yield running
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _ini(postgres_url: str, folder: Path, port: int, pool_mode: str, pool_size: int) -> str:
    given = conninfo_to_dict(postgres_url)
    there = {
        name: str(given[name]) for name in ("host", "port", "user", "password", "dbname") if name in given
    }
    return (
        "[databases]\n"
        f"* = {make_conninfo('', **there)}\n"
        "[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = any\npool_mode = {pool_mode}\ndefault_pool_size = {pool_size}\n"
    )


def _wait_for(running: PgBouncer) -> None:
    def accepts() -> bool:
        if running.process.poll() is not None:
            raise PgBouncerError(f"PgBouncer did not start: {running.log()[-1500:]}")
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", running.port), timeout=1).close()
            return True
        return False

    wait_until(accepts, within_s=_START_TIMEOUT_S, what=f"PgBouncer; {running.log()[-1500:]}")
