"""Tests: a log of every state transition, written by a trigger of the database, and its checker.

The system knows nothing of it. The rows of one claim are told from those of another by claim_seq.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg

from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName, may_become

_PROCESSING = StateName.PROCESSING

_SQLITE = (
    """
    CREATE TABLE test_transitions (
        number INTEGER PRIMARY KEY, job_id TEXT, old TEXT, new TEXT, claim_seq INTEGER, failures INTEGER,
        crashes INTEGER)
    """,
    """
    CREATE TRIGGER test_changed AFTER UPDATE OF state ON qml_jobs WHEN old.state <> new.state BEGIN
        INSERT INTO test_transitions (job_id, old, new, claim_seq, failures, crashes) VALUES (
            new.id, old.state, new.state, new.claim_seq, new.failures - old.failures,
            new.crashes - old.crashes);
    END
    """,
    """
    CREATE TRIGGER test_added AFTER INSERT ON qml_jobs BEGIN
        INSERT INTO test_transitions (job_id, new, claim_seq) VALUES (new.id, new.state, new.claim_seq);
    END
    """,
    """
    CREATE TRIGGER test_removed AFTER DELETE ON qml_jobs BEGIN
        INSERT INTO test_transitions (job_id, old, claim_seq) VALUES (old.id, old.state, old.claim_seq);
    END
    """,
)
_POSTGRES = (
    """
    CREATE TABLE {s}.test_transitions (
        number bigserial PRIMARY KEY, job_id text, old text, new text, claim_seq integer, failures integer,
        crashes integer)
    """,
    """
    CREATE FUNCTION {s}.test_log() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF tg_op = 'INSERT' THEN
            INSERT INTO {s}.test_transitions (job_id, new, claim_seq)
            VALUES (new.id, new.state, new.claim_seq);
        ELSIF tg_op = 'DELETE' THEN
            INSERT INTO {s}.test_transitions (job_id, old, claim_seq)
            VALUES (old.id, old.state, old.claim_seq);
        ELSIF old.state <> new.state THEN
            INSERT INTO {s}.test_transitions (job_id, old, new, claim_seq, failures, crashes)
            VALUES (new.id, old.state, new.state, new.claim_seq, new.failures - old.failures,
                    new.crashes - old.crashes);
        END IF;
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER test_log AFTER INSERT OR UPDATE OR DELETE ON {s}.jobs
    FOR EACH ROW EXECUTE FUNCTION {s}.test_log()
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of a job's state; no old state: a new row; no new state: the row was removed."""

    job_id: str
    old: StateName | None
    new: StateName | None
    claim_seq: int
    failures: int
    """How many were charged with it."""
    crashes: int


class TransitionLog:
    """The log of one storage, which must have its schema already."""

    def __init__(self, url: str) -> None:
        self._is_sqlite = url.startswith("sqlite")
        self._where = url.removeprefix("sqlite:///")
        self._schema = "" if self._is_sqlite else parse_qs(urlsplit(url).query)["schema"][0]
        self._prefix = "" if self._is_sqlite else f'"{self._schema}".'

    def install(self) -> None:
        """Log from now on."""
        for statement in _SQLITE if self._is_sqlite else _POSTGRES:
            self._run(statement.format(s=f'"{self._schema}"') if not self._is_sqlite else statement)

    def clear(self) -> None:
        """Forget what was logged."""
        self._run(f"DELETE FROM {self._prefix}test_transitions")

    def read(self) -> list[Transition]:
        """All there is, in the order in which the changes were made to each job."""
        columns = "job_id, old, new, claim_seq, failures, crashes"
        rows = self._run(f"SELECT {columns} FROM {self._prefix}test_transitions ORDER BY number")
        return [
            Transition(
                job_id=job_id,
                old=None if old is None else StateName(old),
                new=None if new is None else StateName(new),
                claim_seq=claim_seq,
                failures=failures or 0,
                crashes=crashes or 0,
            )
            for job_id, old, new, claim_seq, failures, crashes in rows
        ]

    def attempts(self) -> dict[tuple[str, int], AttemptKind]:
        """The kind of each attempt in the history, by job and claim."""
        table = "qml_attempts" if self._is_sqlite else f"{self._prefix}attempts"
        rows = self._run(f"SELECT job_id, claim_seq, kind FROM {table}")
        return {(job_id, claim_seq): AttemptKind(kind) for job_id, claim_seq, kind in rows}

    def _run(self, statement: str) -> list[tuple[Any, ...]]:
        with self._connection() as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _connection(self) -> Iterator[Any]:
        if self._is_sqlite:
            with closing(sqlite3.connect(self._where, isolation_level=None, timeout=20)) as connection:
                yield connection
        else:
            with psycopg.connect(self._where.partition("?")[0], autocommit=True) as postgres:
                yield postgres


def faults_of(log: Sequence[Transition], attempts: dict[tuple[str, int], AttemptKind]) -> list[str]:
    """What in the log breaks I3, I4 or the transition table; empty when all of it holds."""
    faults = [
        f"{one.job_id}: {one.old} became {one.new}"
        for one in log
        if one.old is not None and one.new is not None and not may_become(one.old, one.new)
    ]
    faults += [
        f"{one.job_id}: removed while {one.old}"
        for one in log
        if one.new is None and one.old is not None and not one.old.is_final
    ]
    faults += _faults_of_claims(log)
    faults += _faults_of_attempts(log, attempts)
    return faults


def _faults_of_claims(log: Sequence[Transition]) -> Iterator[str]:
    """Each claim begins once, with the next number, and ends at most once, under its own number."""
    newest: Counter[str] = Counter()
    held: dict[str, int] = {}
    for one in log:
        if one.new is _PROCESSING:
            if one.claim_seq != newest[one.job_id] + 1 or one.job_id in held:
                yield f"{one.job_id}: claim {one.claim_seq} after {newest[one.job_id]}"
            newest[one.job_id] = held[one.job_id] = one.claim_seq
        elif one.old is _PROCESSING and held.pop(one.job_id, None) != one.claim_seq:
            yield f"{one.job_id}: claim {one.claim_seq} ended and was not held"
        elif one.claim_seq != newest[one.job_id]:
            yield f"{one.job_id}: has claim_seq {one.claim_seq}, not {newest[one.job_id]}"


def _faults_of_attempts(
    log: Sequence[Transition], attempts: dict[tuple[str, int], AttemptKind]
) -> Iterator[str]:
    """What ended a claim, what it was charged for and what its history says are the same."""
    removed = {one.job_id for one in log if one.new is None}
    for one in log:
        if one.old is not _PROCESSING or one.job_id in removed:
            continue
        kind = attempts.get((one.job_id, one.claim_seq))
        match one.new:
            case StateName.SUCCEEDED:
                fits = kind is None and one.failures == one.crashes == 0
            case StateName.DELETED:
                fits = kind is AttemptKind.CANCELLED and one.failures == one.crashes == 0
            case StateName.ENQUEUED:  # a release, or the first crash
                fits = (kind is None and one.crashes == 0) or (kind is AttemptKind.CRASH and one.crashes == 1)
            case _ if kind is AttemptKind.CRASH:
                fits = (one.failures, one.crashes) == (0, 1)
            case _:
                fits = kind in (AttemptKind.FAILURE, AttemptKind.TIMEOUT) and (
                    (one.failures, one.crashes) == (1, 0)
                )
        if not fits:
            yield f"{one.job_id}: claim {one.claim_seq} ended {one.new} as {kind}: {one}"
