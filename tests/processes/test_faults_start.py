"""Tests: servers that start on a storage that is not theirs to use, not there, or being made by others."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until

MakeServer = Callable[..., Server]
_TABLES = ("jobs", "attempts", "recurring_jobs", "servers", "workers", "locks", "schema_version")


@contextmanager
def driver(url: str) -> Iterator[tuple[Any, str]]:
    """A plain connection to the database, and what its tables' names begin with."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            yield connection, "qml_"
    else:
        schema = parse_qs(urlsplit(url).query)["schema"][0]
        with psycopg.connect(url.partition("?")[0], autocommit=True) as postgres:
            yield postgres, f'"{schema}".'


def dump(url: str) -> dict[str, list[Any]]:
    """Every row of every table."""
    with driver(url) as (connection, prefix):
        return {
            name: sorted(connection.execute(f"SELECT * FROM {prefix}{name}"), key=str) for name in _TABLES
        }


@pytest.mark.fault(47)
@pytest.mark.parametrize(("version", "said"), [(999, "newer"), (0, "older")])
def test_a_server_refuses_a_schema_of_another_version_and_writes_nothing(
    server: MakeServer, storage: Storage, version: int, said: str
) -> None:
    enqueue(storage, "quick")
    storage.close()
    with driver(storage.url) as (connection, prefix):
        versions = f"{prefix}schema_version"
        connection.execute(f"DELETE FROM {versions} WHERE version < (SELECT max(version) FROM {versions})")
        connection.execute(f"UPDATE {versions} SET version = {version}")
    before = dump(storage.url)
    one = server("-w", "1").start(ready=None)

    code = one.wait()

    assert code == 5, one.log()
    assert f"{said} than this code" in one.log()
    assert "Traceback" not in one.log()
    assert dump(storage.url) == before


@pytest.mark.fault(48)
@pytest.mark.unmigrated
def test_five_servers_that_start_at_once_on_an_empty_storage_make_one_schema_and_all_work(
    server: MakeServer, storage: Storage
) -> None:
    five = [server("-w", "1") for _ in range(5)]
    for one in five:
        one.start(ready=None)
    wait_until(lambda: sum(bool(one.worker_pids()) for one in five) == 5, what=five[0].log())

    ids = [enqueue(storage, "quick") for _ in range(20)]

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    # A worker that has to wait for a processor gives back what it holds: runs are counted, and not claims.
    assert sorted(line.job_id for line in five[0].journal() if line.what == "start") == sorted(ids)
    assert len(storage.list_servers()) == 5
    with driver(storage.url) as (connection, prefix):
        versions = connection.execute(f"SELECT version FROM {prefix}schema_version").fetchall()
    assert versions == [(number,) for number in range(1, storage.schema_version() + 1)]
    assert [one.stop() for one in five] == [0] * 5


@pytest.mark.fault(38)
def test_a_server_whose_postgres_is_down_says_so_and_exits_4(server: MakeServer) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and never listens, so that nobody else can
        one = server("-w", "1")
        one.url = f"postgresql://someone:secret@127.0.0.1:{bound.getsockname()[1]}/db"
        one.start(ready=None)

        code = one.wait()

    assert code == 4, one.log()
    assert "is not available for connecting" in one.log()
    assert "secret" not in one.log()
    assert "Traceback" not in one.log()
