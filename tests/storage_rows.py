"""Tests: rows put into the tables behind the system's back."""

from __future__ import annotations

import sqlite3
from urllib.parse import parse_qs, urlsplit

import psycopg
from psycopg import sql

from qml_mp.core.job import Job
from qml_mp.storage.protocol import Storage


def insert_raw_job(storage: Storage, method: str, payload: str | bytes) -> str:
    """An Enqueued row with this very payload, as another program might write it; its id."""
    job_id = storage.enqueue(Job.new("placeholder", queue="being-written"))
    change_raw_job(storage, job_id, method=method, payload=payload, queue="default")
    return job_id


def change_raw_job(storage: Storage, job_id: str, **columns: str | bytes | int) -> None:
    """Set columns of a row, unchecked."""
    if storage.url.startswith("sqlite:"):
        assignments = ", ".join(f"{name} = ?" for name in columns)
        connection = sqlite3.connect(storage.url.removeprefix("sqlite:///"), timeout=20)
        with connection:
            connection.execute(f"UPDATE qml_jobs SET {assignments} WHERE id = ?", [*columns.values(), job_id])
        connection.close()
        return
    (schema,) = parse_qs(urlsplit(storage.url).query)["schema"]
    assignments_sql = sql.SQL(", ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in columns)
    statement = sql.SQL("UPDATE {}.jobs SET {} WHERE id = %s").format(sql.Identifier(schema), assignments_sql)
    base = storage.url.partition("?")[0]
    with psycopg.connect(base, autocommit=True) as postgres:
        postgres.execute(statement, [*columns.values(), job_id])
