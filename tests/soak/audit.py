"""Tests: the database's own log of what happens to jobs, kept by triggers and read afterwards.

The system under test neither writes nor reads it: whatever changes a row is logged in the very
transaction that changes it, also by a worker that is killed a moment later.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a job's row, in the order of the commits. `new_state` "gone": the row was deleted."""

    job_id: str
    old_state: str
    new_state: str
    old_seq: int
    new_seq: int
    old_worker: str | None
    new_worker: str | None
    result: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """What the judge wants of a job's row."""

    id: str
    state: str
    claim_seq: int
    failures: int
    crashes: int
    worker_id: str | None


_COLUMNS = "job_id, old_state, new_state, old_seq, new_seq, old_worker, new_worker, result"
_CHANGED = (
    "OLD.id, OLD.state, NEW.state, OLD.claim_seq, NEW.claim_seq, OLD.worker_id, NEW.worker_id, NEW.result"
)
_GONE = "OLD.id, OLD.state, 'gone', OLD.claim_seq, OLD.claim_seq, OLD.worker_id, NULL, NULL"

_SQLITE = f"""
CREATE TABLE soak_transitions (
    n INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT, old_state TEXT, new_state TEXT, old_seq INTEGER,
    new_seq INTEGER, old_worker TEXT, new_worker TEXT, result TEXT);
CREATE TABLE soak_servers (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, pid INTEGER);
CREATE TABLE soak_workers (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, pid INTEGER);
CREATE TRIGGER soak_change AFTER UPDATE ON qml_jobs
WHEN OLD.state IS NOT NEW.state OR OLD.claim_seq IS NOT NEW.claim_seq OR OLD.result IS NOT NEW.result
BEGIN INSERT INTO soak_transitions ({_COLUMNS}) VALUES ({_CHANGED}); END;
CREATE TRIGGER soak_gone AFTER DELETE ON qml_jobs
BEGIN INSERT INTO soak_transitions ({_COLUMNS}) VALUES ({_GONE}); END;
CREATE TRIGGER soak_server AFTER INSERT ON qml_servers
BEGIN INSERT INTO soak_servers (id, pid) VALUES (NEW.id, NEW.pid); END;
CREATE TRIGGER soak_worker AFTER INSERT ON qml_workers
BEGIN INSERT INTO soak_workers (id, pid) VALUES (NEW.id, NEW.pid); END;
"""

_POSTGRES = f"""
CREATE TABLE {{s}}.soak_transitions (
    n bigserial PRIMARY KEY, job_id text, old_state text, new_state text, old_seq integer,
    new_seq integer, old_worker text, new_worker text, result text);
CREATE TABLE {{s}}.soak_servers (n bigserial PRIMARY KEY, id text, pid integer);
CREATE TABLE {{s}}.soak_workers (n bigserial PRIMARY KEY, id text, pid integer);
CREATE FUNCTION {{s}}.soak_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'servers' THEN
        INSERT INTO {{s}}.soak_servers (id, pid) VALUES (NEW.id, NEW.pid);
    ELSIF TG_TABLE_NAME = 'workers' THEN
        INSERT INTO {{s}}.soak_workers (id, pid) VALUES (NEW.id, NEW.pid);
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO {{s}}.soak_transitions ({_COLUMNS}) VALUES ({_GONE});
    ELSE
        INSERT INTO {{s}}.soak_transitions ({_COLUMNS}) VALUES ({_CHANGED});
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER soak_change AFTER UPDATE ON {{s}}.jobs FOR EACH ROW
WHEN ((OLD.state, OLD.claim_seq, OLD.result) IS DISTINCT FROM (NEW.state, NEW.claim_seq, NEW.result))
EXECUTE FUNCTION {{s}}.soak_note();
CREATE TRIGGER soak_gone AFTER DELETE ON {{s}}.jobs FOR EACH ROW EXECUTE FUNCTION {{s}}.soak_note();
CREATE TRIGGER soak_server AFTER INSERT ON {{s}}.servers FOR EACH ROW EXECUTE FUNCTION {{s}}.soak_note();
CREATE TRIGGER soak_worker AFTER INSERT ON {{s}}.workers FOR EACH ROW EXECUTE FUNCTION {{s}}.soak_note();
"""


class Audit:
    """The judge's own connection to the database. The schema must exist already."""

    def __init__(self, url: str) -> None:
        self._sqlite: sqlite3.Connection | None = None
        self._postgres: psycopg.Connection[Any] | None = None
        self._prefix = "qml_"
        self._schema = ""
        if url.startswith("sqlite:"):
            self._sqlite = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30, isolation_level=None)
            return
        (self._schema,) = parse_qs(urlsplit(url).query)["schema"]
        self._postgres = psycopg.connect(url.partition("?")[0], autocommit=True)
        self._postgres.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(self._schema)))
        self._prefix = ""

    def install(self) -> None:
        """Make the log and its triggers."""
        if self._sqlite is not None:
            self._sqlite.executescript(_SQLITE)
        elif self._postgres is not None:
            statements = sql.SQL(_POSTGRES).format(s=sql.Identifier(self._schema))
            self._postgres.execute(statements)

    def remove(self) -> None:
        """Drop the triggers, for measurements of speed."""
        for name, table in (
            ("change", "jobs"),
            ("gone", "jobs"),
            ("server", "servers"),
            ("worker", "workers"),
        ):
            if self._sqlite is not None:
                self._sqlite.execute(f"DROP TRIGGER soak_{name}")
            elif self._postgres is not None:
                self._postgres.execute(f"DROP TRIGGER soak_{name} ON {table}".encode())

    def transitions(self) -> list[Transition]:
        """All changes of jobs, oldest first."""
        names = [name.strip() for name in _COLUMNS.split(",")]
        rows = self._rows(f"SELECT {_COLUMNS} FROM soak_transitions ORDER BY n")
        return [Transition(**dict(zip(names, row, strict=True))) for row in rows]

    def jobs(self) -> list[JobRow]:
        """Every job's row as it is now."""
        names = ("id", "state", "claim_seq", "failures", "crashes", "worker_id")
        rows = self._rows(f"SELECT {', '.join(names)} FROM {self._prefix}jobs")
        return [JobRow(**dict(zip(names, row, strict=True))) for row in rows]

    def servers(self) -> list[tuple[str, int]]:
        """(id, pid) of every run of a server that ever registered."""
        return [(row[0], row[1]) for row in self._rows("SELECT id, pid FROM soak_servers ORDER BY n")]

    def workers(self, *, after: int = 0) -> list[tuple[int, str, int]]:
        """(number in the log, id, pid) of every worker that ever registered, from there on."""
        rows = self._rows(f"SELECT n, id, pid FROM soak_workers WHERE n > {after:d} ORDER BY n")
        return [(row[0], row[1], row[2]) for row in rows]

    def unfinished(self) -> int:
        """How many jobs have not ended."""
        ended = "('succeeded', 'failed', 'deleted')"
        return int(self._rows(f"SELECT count(*) FROM {self._prefix}jobs WHERE state NOT IN {ended}")[0][0])

    def seconds_of_work(self) -> float:
        """From the first start of a job to the last end of one."""
        span = "max(finished_at) - min(started_at)"
        span = f"({span}) / 1e6" if self._sqlite is not None else f"extract(epoch FROM {span})"
        return float(self._rows(f"SELECT {span} FROM {self._prefix}jobs")[0][0])

    def integrity(self) -> str:
        """What SQLite's own check of the file says; "ok" on PostgreSQL, which is not killed here."""
        return "ok" if self._sqlite is None else str(self._rows("PRAGMA integrity_check")[0][0])

    def close(self) -> None:
        """Let go of the database."""
        for connection in (self._sqlite, self._postgres):
            if connection is not None:
                connection.close()

    def _rows(self, statement: str) -> Sequence[tuple[Any, ...]]:
        if self._sqlite is not None:
            return self._sqlite.execute(statement).fetchall()
        assert self._postgres is not None
        return self._postgres.execute(statement.encode()).fetchall()
