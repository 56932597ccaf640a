"""Benchmark, limits: bare statements that claim and finish jobs of the project's tables, in forked loops.

The least that any system can send that keeps these rows: one statement for all outcomes and one for the next
claims, in one commit. Nothing watches over a job here.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import psycopg

from qml_mp.core.job import new_job_id
from tests.bench.forked import fork_loops, wait_for_all
from tests.bench.place import Place
from tests.bench.system import Backend, Command, Kind, Producer, System
from tests.bench.systems.qml import DURABILITY, migration
from tests.bench.work import Work, perform

_BACKEND_VARIABLE, _BATCH_VARIABLE = "QML_BENCH_BACKEND", "QML_BENCH_BATCH"
_COLUMNS = "id, method, queue, state, payload, created_at, enqueued_at"

Claimed = tuple[str, int, str]
"""The id, the number of the claim, and the payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statements(System):
    """Forked loops that claim and finish `batch` jobs at a time."""

    batch: int

    kind: ClassVar[Kind] = Kind.LIMIT

    def install(self, place: Place) -> Sequence[Command]:
        return (migration(self.backend, place),)

    def workers(self, place: Place) -> Sequence[Command]:
        return (self.program("loops"),)

    def environment(self) -> dict[str, str]:
        return {_BACKEND_VARIABLE: self.backend, _BATCH_VARIABLE: str(self.batch)}


SYSTEMS = tuple(
    Statements(
        name=f"statements-{batch}",
        backend=backend,
        batch=batch,
        settings=f"bare statements, {batch} jobs at a time",
        durability=durability,
        usual_jobs_per_s=10_000 if batch == 10 else 20_000,
    )
    for backend, durability in DURABILITY.items()
    for batch in (10, 100)
)


class Link(ABC):
    """One connection, with the statements of its backend."""

    @abstractmethod
    def exchange(self, finished: Sequence[Claimed], limit: int) -> list[Claimed]:
        """Finish these and claim so many more, in one commit."""

    @abstractmethod
    def insert_many(self, works: Sequence[Work]) -> None:
        """All of them by the fastest way, in one commit."""

    @abstractmethod
    def insert(self, work: Work) -> None:
        """One, committed."""


def loops() -> None:
    """Fork, and wait until nothing is left."""
    wait_for_all(fork_loops(Place.current().workers, _loop))


def _loop(_place: int) -> None:
    link, batch = _link(), int(os.environ[_BATCH_VARIABLE])
    claimed: list[Claimed] = link.exchange([], batch)
    while claimed:
        for _, _, payload in claimed:
            perform(**json.loads(payload))
        claimed = link.exchange(claimed, batch)


class PostgresLink(Link):
    """psycopg, one round trip for both statements."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True, options="-c search_path=qml_mp")
        self._connection.prepare_threshold = 0

    def exchange(self, finished: Sequence[Claimed], limit: int) -> list[Claimed]:
        with self._connection.pipeline(), self._connection.transaction():
            if finished:
                self._connection.execute(
                    _FINISH, ([job[0] for job in finished], [job[1] for job in finished])
                )
            claimed = self._connection.execute(_CLAIM, (limit,))
        return claimed.fetchall()

    def insert_many(self, works: Sequence[Work]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self._connection.cursor() as cursor, cursor.copy(f"COPY jobs ({_COLUMNS}) FROM STDIN") as copy:
            for work in works:
                copy.write_row((new_job_id(), "perform", "default", "enqueued", _payload(work), now, now))

    def insert(self, work: Work) -> None:
        self._connection.execute(_INSERT, (new_job_id(), _payload(work)))


_FINISH = """
    UPDATE jobs AS j
    SET state = 'succeeded', result = 'null', finished_at = now(), expires_at = now() + interval '1 day',
        duration_us = 10, worker_id = NULL, server_id = NULL
    FROM unnest(%s::text[], %s::integer[]) AS f (id, claim_seq)
    WHERE j.id = f.id AND j.claim_seq = f.claim_seq AND j.state = 'processing'
"""
_CLAIM = """
    WITH candidate AS MATERIALIZED (
        SELECT id FROM jobs
        WHERE state = 'enqueued' AND queue <> '' AND queue = 'default'
          AND left(method, 201) COLLATE "C" = 'perform'
        ORDER BY priority DESC, created_at, id LIMIT %s FOR UPDATE SKIP LOCKED
    )
    UPDATE jobs AS j
    SET state = 'processing', claim_seq = j.claim_seq + 1, started_at = now(), worker_id = 'w',
        server_id = 's'
    FROM candidate AS c WHERE j.id = c.id
    RETURNING j.id, j.claim_seq, j.payload
"""
_INSERT = f"INSERT INTO jobs ({_COLUMNS}) VALUES (%s, 'perform', 'default', 'enqueued', %s, now(), now())"


class SqliteLink(Link):
    """The standard library's sqlite3, synced as the project's."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
        self._connection.execute("PRAGMA synchronous = FULL")

    def exchange(self, finished: Sequence[Claimed], limit: int) -> list[Claimed]:
        now = time.time_ns() // 1000
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_SQLITE_FINISH, [(now, now, job[0], job[1]) for job in finished])
        claimed: list[Claimed] = self._connection.execute(_SQLITE_CLAIM, (now, limit)).fetchall()
        self._connection.execute("COMMIT")
        return claimed

    def insert_many(self, works: Sequence[Work]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_SQLITE_INSERT, [_row(work) for work in works])
        self._connection.execute("COMMIT")

    def insert(self, work: Work) -> None:
        self._connection.execute(_SQLITE_INSERT, _row(work))


_SQLITE_FINISH = """
    UPDATE qml_jobs
    SET state = 'succeeded', result = 'null', finished_at = ?, expires_at = ?, duration_us = 10,
        worker_id = NULL, server_id = NULL
    WHERE id = ? AND claim_seq = ? AND state = 'processing'
"""
_SQLITE_CLAIM = """
    UPDATE qml_jobs
    SET state = 'processing', claim_seq = claim_seq + 1, started_at = ?, worker_id = 'w', server_id = 's'
    WHERE id IN (
        SELECT id FROM qml_jobs WHERE state = 'enqueued' AND queue = 'default' AND method = 'perform'
        ORDER BY priority DESC, created_at, id LIMIT ?)
    RETURNING id, claim_seq, payload
"""
_SQLITE_INSERT = f"INSERT INTO qml_jobs ({_COLUMNS}) VALUES (?, 'perform', 'default', 'enqueued', ?, ?, ?)"


def _row(work: Work) -> tuple[str, str, int, int]:
    now = time.time_ns() // 1000
    return (new_job_id(), _payload(work), now, now)


def _payload(work: Work) -> str:
    return json.dumps(work.arguments())


def _link() -> Link:
    place = Place.current()
    if os.environ[_BACKEND_VARIABLE] == Backend.POSTGRES:
        return PostgresLink(place.url)
    return SqliteLink(str(place.file))


class StatementsProducer(Producer):
    """COPY or many rows in one commit, and bare INSERTs."""

    def __init__(self) -> None:
        self._link = _link()

    def bulk(self, works: Sequence[Work]) -> None:
        self._link.insert_many(works)

    def single(self, work: Work) -> None:
        self._link.insert(work)


def producer() -> Producer:
    return StatementsProducer()
