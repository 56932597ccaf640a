"""Tests: rows put into the tables behind the system's back."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg import sql

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage

_LOCK = 4711


def insert_raw_job(storage: Storage, method: str, payload: str | bytes) -> str:
    """An Enqueued row with this very payload, as another program might write it; its id."""
    job_id = storage.enqueue(Job.new("placeholder", queue="being-written"))
    change_raw_job(storage, job_id, method=method, payload=payload, queue="default")
    return job_id


def change_raw_job(storage: Storage, job_id: str, **columns: str | bytes | int) -> None:
    """Set columns of a job's row, unchecked."""
    _change(storage, "jobs", job_id, columns)


def move_server_elsewhere(storage: Storage, server_id: str) -> None:
    """Have the rows say that the server and its workers run on another host, so that no process table tells
    of them."""
    change_server(storage, server_id, host="elsewhere")
    for worker in storage.list_workers():
        if worker.server_id == server_id:
            _change(storage, "workers", worker.id, {"host": "elsewhere"})


def hooks_of(storage: Storage, *methods: str) -> dict[str, tuple[bool, bool]]:
    """Of each of these methods of whose jobs something is stored for code to hear of: whether its failures
    are, and how attempts ended whose process died."""
    query = storage._db.queries.failures.hooked
    rows = storage._db.read("reading hooks", query, {"methods": list(methods)})
    return {str(row["method"]): (bool(row["calls"]), bool(row["traces"])) for row in rows}


def run_raw(storage: Storage, statement: str) -> None:
    """Run a statement as somebody else who uses the database; `{jobs}` stands for the table, `{s}` for what
    other names begin with."""
    if storage.url.startswith("sqlite:"):
        connection = sqlite3.connect(storage.url.removeprefix("sqlite:///"), timeout=20)
        with connection:
            connection.execute(statement.format(s="", jobs="qml_jobs"))
        connection.close()
        return
    schema = _schema(storage)
    with psycopg.connect(storage.url.partition("?")[0], autocommit=True) as postgres:
        postgres.execute(statement.format(s=f'"{schema}".', jobs=f'"{schema}".jobs').encode())


def pause_writes(storage: Storage, state: StateName) -> None:
    """PostgreSQL: from now on whoever moves a job to this state waits, its row locked, as long as a
    transaction has called `hold_writes`."""
    run_raw(
        storage,
        "CREATE FUNCTION {s}pause() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN PERFORM pg_advisory_xact_lock_shared({_LOCK}); RETURN NEW; END $$",
    )
    run_raw(
        storage,
        f"CREATE TRIGGER pause BEFORE UPDATE ON {{jobs}} FOR EACH ROW WHEN (NEW.state = '{state}') "
        "EXECUTE FUNCTION {s}pause()",
    )


def hold_writes(holder: psycopg.Connection) -> None:
    """What `pause_writes` has named waits until this transaction ends."""
    holder.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])


def change_server(storage: Storage, server_id: str, **columns: str | int) -> None:
    """Set columns of a server's row, unchecked."""
    _change(storage, "servers", server_id, columns)


def _change(
    storage: Storage,
    table: str,
    row_id: str,
    columns: Mapping[str, str | bytes | int] | Mapping[str, str | int],
) -> None:
    values = [*columns.values(), row_id]
    if storage.url.startswith("sqlite:"):
        assignments = ", ".join(f"{name} = ?" for name in columns)
        connection = sqlite3.connect(storage.url.removeprefix("sqlite:///"), timeout=20)
        with connection:
            connection.execute(f"UPDATE qml_{table} SET {assignments} WHERE id = ?", values)
        connection.close()
        return
    assignments_sql = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in columns)
    statement = sql.SQL("UPDATE {}.{} SET {} WHERE id = %s").format(
        sql.Identifier(_schema(storage)), sql.Identifier(table), assignments_sql
    )
    base = storage.url.partition("?")[0]
    with psycopg.connect(base, autocommit=True) as postgres:
        postgres.execute(statement, values)


def _schema(storage: Storage) -> str:
    (schema,) = parse_qs(urlsplit(storage.url).query).get("schema", ["qml_mp"])
    return schema
