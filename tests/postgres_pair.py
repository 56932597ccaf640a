"""Tests: two PostgreSQL servers, of which the second follows the first, as a standby that takes over does.

What the first has committed stands on the second, too (synchronous replication), so that nothing that anybody
was told of is lost with the first.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.postgres_cluster import (
    SHUTDOWNS,
    ClusterServer,
    initialise,
    unprivileged_user,
)
from tests.postgres_programs import find_server_programs


@dataclass(kw_only=True, eq=False)
class PostgresPair:
    """The one that is the primary at first, and its standby."""

    first: ClusterServer
    second: ClusterServer

    @property
    def url(self) -> str:
        """Leads to whichever can write at the moment."""
        hosts = ",".join(one.url.rpartition("@")[2].partition("/")[0] for one in (self.first, self.second))
        return f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"

    def lose_first(self) -> None:
        """It dies in the middle of what it does, and does not come back."""
        self.first.stop(SHUTDOWNS["immediate"])

    def promote_second(self) -> None:
        """From now on it is the primary."""
        with psycopg.connect(self.second.url, autocommit=True) as connection:
            connection.execute("SELECT pg_promote()")


@contextmanager
def primary_and_standby() -> Iterator[PostgresPair]:
    """Both for the length of the block."""
    folder = Path(tempfile.mkdtemp(prefix="qml-mp-pg-", dir="/tmp" if os.geteuid() == 0 else None))
    user = unprivileged_user()
    programs = find_server_programs()
    folders = folder / "first", folder / "second"
    servers: list[ClusterServer] = []
    try:
        for each in (folder, *folders):
            each.mkdir(exist_ok=True)
            _give(each, user and (user.pw_uid, user.pw_gid))
        if user is not None:
            programs = programs.reachable_for(user, folder / "programs")
        initialise(programs, folders[0], user)
        shutil.copytree(folders[0] / "data", folders[1] / "data")  # while nobody serves it
        first, second = (ClusterServer(programs, each, user, durable=True) for each in folders)
        servers += [first, second]
        _set(folders[0], "synchronous_standby_names = '*'")
        first.start_anywhere()
        place = first.url.rpartition("@")[2].partition("/")[0].split(":")
        _set(folders[1], f"primary_conninfo = 'host={place[0]} port={place[1]} user=postgres'")
        (folders[1] / "data" / "standby.signal").touch()
        for path in folders[1].rglob("*"):
            _give(path, user and (user.pw_uid, user.pw_gid))
        (folders[1] / "data").chmod(0o700)
        second.start_anywhere()
        yield PostgresPair(first=first, second=second)
    finally:
        for server in servers:
            server.stop(SHUTDOWNS["immediate"])
        shutil.rmtree(folder, ignore_errors=True)


def _give(path: Path, owner: tuple[int, int] | None) -> None:
    if owner is not None:
        os.chown(path, *owner)


def _set(folder: Path, line: str) -> None:
    with (folder / "data" / "postgresql.auto.conf").open("a") as file:
        file.write(f"{line}\n")
