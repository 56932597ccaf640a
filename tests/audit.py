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

from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import FINAL_STATES, StateName


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a job's row. No old state: a new row; no new state: the row was deleted."""

    job_id: str
    old: StateName | None
    new: StateName | None
    old_seq: int
    new_seq: int
    old_worker: str | None
    new_worker: str | None
    result: str | None = None
    failures: int = 0
    """How many were charged with it."""
    crashes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """What the judge wants of a job's row."""

    id: str
    state: StateName
    claim_seq: int
    failures: int
    crashes: int


_COLUMNS = "job_id, old, new, old_seq, new_seq, old_worker, new_worker, result, failures, crashes"
_ADDED = "NEW.id, NULL, NEW.state, NEW.claim_seq, NEW.claim_seq, NULL, NEW.worker_id, NEW.result, 0, 0"
_CHANGED = (
    "OLD.id, OLD.state, NEW.state, OLD.claim_seq, NEW.claim_seq, OLD.worker_id, NEW.worker_id, NEW.result, "
    "NEW.failures - OLD.failures, NEW.crashes - OLD.crashes"
)
_GONE = "OLD.id, OLD.state, NULL, OLD.claim_seq, OLD.claim_seq, OLD.worker_id, NULL, NULL, 0, 0"
_WATCHED = ("state", "claim_seq", "result", "failures", "crashes")

_SQLITE = f"""
CREATE TABLE audit_transitions (
    n INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT, old TEXT, new TEXT, old_seq INTEGER,
    new_seq INTEGER, old_worker TEXT, new_worker TEXT, result TEXT, failures INTEGER, crashes INTEGER);
CREATE TABLE audit_servers (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, pid INTEGER);
CREATE TABLE audit_workers (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT, pid INTEGER);
CREATE TRIGGER audit_added AFTER INSERT ON qml_jobs
BEGIN INSERT INTO audit_transitions ({_COLUMNS}) VALUES ({_ADDED}); END;
CREATE TRIGGER audit_change AFTER UPDATE ON qml_jobs
WHEN {" OR ".join(f"OLD.{column} IS NOT NEW.{column}" for column in _WATCHED)}
BEGIN INSERT INTO audit_transitions ({_COLUMNS}) VALUES ({_CHANGED}); END;
CREATE TRIGGER audit_gone AFTER DELETE ON qml_jobs
BEGIN INSERT INTO audit_transitions ({_COLUMNS}) VALUES ({_GONE}); END;
CREATE TRIGGER audit_server AFTER INSERT ON qml_servers
BEGIN INSERT INTO audit_servers (id, pid) VALUES (NEW.id, NEW.pid); END;
CREATE TRIGGER audit_worker AFTER INSERT ON qml_workers
BEGIN INSERT INTO audit_workers (id, pid) VALUES (NEW.id, NEW.pid); END;
"""

_POSTGRES = f"""
CREATE TABLE {{s}}.audit_transitions (
    n bigserial PRIMARY KEY, job_id text, old text, new text, old_seq integer,
    new_seq integer, old_worker text, new_worker text, result text, failures integer, crashes integer);
CREATE TABLE {{s}}.audit_servers (n bigserial PRIMARY KEY, id text, pid integer);
CREATE TABLE {{s}}.audit_workers (n bigserial PRIMARY KEY, id text, pid integer);
CREATE FUNCTION {{s}}.audit_note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'servers' THEN
        INSERT INTO {{s}}.audit_servers (id, pid) VALUES (NEW.id, NEW.pid);
    ELSIF TG_TABLE_NAME = 'workers' THEN
        INSERT INTO {{s}}.audit_workers (id, pid) VALUES (NEW.id, NEW.pid);
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO {{s}}.audit_transitions ({_COLUMNS}) VALUES ({_ADDED});
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO {{s}}.audit_transitions ({_COLUMNS}) VALUES ({_GONE});
    ELSE
        INSERT INTO {{s}}.audit_transitions ({_COLUMNS}) VALUES ({_CHANGED});
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_added AFTER INSERT ON {{s}}.jobs FOR EACH ROW EXECUTE FUNCTION {{s}}.audit_note();
CREATE TRIGGER audit_change AFTER UPDATE ON {{s}}.jobs FOR EACH ROW
WHEN ({" OR ".join(f"OLD.{column} IS DISTINCT FROM NEW.{column}" for column in _WATCHED)})
EXECUTE FUNCTION {{s}}.audit_note();
CREATE TRIGGER audit_gone AFTER DELETE ON {{s}}.jobs FOR EACH ROW EXECUTE FUNCTION {{s}}.audit_note();
CREATE TRIGGER audit_server AFTER INSERT ON {{s}}.servers FOR EACH ROW EXECUTE FUNCTION {{s}}.audit_note();
CREATE TRIGGER audit_worker AFTER INSERT ON {{s}}.workers FOR EACH ROW EXECUTE FUNCTION {{s}}.audit_note();
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
            ("added", "jobs"),
            ("change", "jobs"),
            ("gone", "jobs"),
            ("server", "servers"),
            ("worker", "workers"),
        ):
            if self._sqlite is not None:
                self._sqlite.execute(f"DROP TRIGGER audit_{name}")
            elif self._postgres is not None:
                self._postgres.execute(f"DROP TRIGGER audit_{name} ON {table}".encode())

    def clear(self) -> None:
        """Forget the changes of jobs so far."""
        self._run("DELETE FROM audit_transitions")

    def transitions(self) -> list[Transition]:
        """All changes, those of one job in the order in which they were made."""
        rows = self._run(f"SELECT {_COLUMNS} FROM audit_transitions ORDER BY n")
        names = _COLUMNS.split(", ")
        return [
            Transition(
                job_id=row[0],
                old=row[1] and StateName(row[1]),
                new=row[2] and StateName(row[2]),
                **dict(zip(names[3:], row[3:], strict=True)),
            )
            for row in rows
        ]

    def attempts(self) -> dict[tuple[str, int], AttemptKind]:
        """The kind of each attempt in the history, by job and claim."""
        rows = self._run(f"SELECT job_id, claim_seq, kind FROM {self._prefix}attempts")
        return {(job_id, claim_seq): AttemptKind(kind) for job_id, claim_seq, kind in rows}

    def jobs(self) -> list[JobRow]:
        """Every job's row as it is now."""
        rows = self._run(f"SELECT id, state, claim_seq, failures, crashes FROM {self._prefix}jobs")
        return [
            JobRow(id=job_id, state=StateName(state), claim_seq=claim_seq, failures=failures, crashes=crashes)
            for job_id, state, claim_seq, failures, crashes in rows
        ]

    def servers(self) -> list[tuple[str, int]]:
        """(id, pid) of every run of a server that ever registered."""
        return [(row[0], row[1]) for row in self._run("SELECT id, pid FROM audit_servers ORDER BY n")]

    def workers(self, *, after: int = 0) -> list[tuple[int, str, int]]:
        """(number in the log, id, pid) of every worker that ever registered, from there on."""
        rows = self._run(f"SELECT n, id, pid FROM audit_workers WHERE n > {after:d} ORDER BY n")
        return [(row[0], row[1], row[2]) for row in rows]

    def unfinished(self) -> int:
        """How many jobs have not ended."""
        ended = tuple(map(str, FINAL_STATES))
        return int(self._run(f"SELECT count(*) FROM {self._prefix}jobs WHERE state NOT IN {ended}")[0][0])

    def integrity(self) -> str:
        """What SQLite's own check of the file says; "ok" on PostgreSQL, which is not killed here."""
        return "ok" if self._sqlite is None else str(self._run("PRAGMA integrity_check")[0][0])

    def close(self) -> None:
        """Let go of the database."""
        for connection in (self._sqlite, self._postgres):
            if connection is not None:
                connection.close()

    def _run(self, statement: str) -> Sequence[tuple[Any, ...]]:
        if self._sqlite is not None:
            return self._sqlite.execute(statement).fetchall()
        assert self._postgres is not None
        cursor = self._postgres.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []
