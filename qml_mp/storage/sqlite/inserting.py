"""Every process: new jobs written into an open transaction on SQLite."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from functools import cache

from qml_mp.storage.sqlite.each import in_parts
from qml_mp.storage.sqlite.instants import to_us
from qml_mp.storage.sqlite.opening import restore_checks
from qml_mp.storage.sqlite.queries.jobs import INSERT, INSERT_PLAIN, NEW_PLAIN_ROW, NEW_ROW
from qml_mp.storage.storable import NewRow

_AT_A_TIME = (200, 50)  # 50 rows are a quarter faster than one by one, 200 a third; more gain nothing
_LEFT_OUT = (None,) * 5  # by most jobs: the last columns of a row
_MANY_ROWS = 500  # from so many on it pays to switch the CHECKs off, which has all statements prepared anew


def insert_jobs(
    cursor: sqlite3.Cursor, rows: Sequence[NewRow], *, now: datetime, is_ours: bool
) -> list[NewRow]:
    """`Transaction.insert`: which of a statement's rows are there already, the driver does not say.

    Nothing is set on a connection that is not ours.
    """
    doubtful: list[NewRow] = []
    # The table's CHECKs are a third of what an INSERT costs, and are there for what other programs write:
    # what `new_row` gives has passed the same ones.
    is_unchecked = is_ours and len(rows) >= _MANY_ROWS
    try:
        if is_unchecked:
            cursor.execute("PRAGMA ignore_check_constraints = ON")
        for batch in in_parts(rows, _AT_A_TIME):
            if cursor.execute(*insert_statement(batch, now=now)).rowcount < len(batch):
                doubtful.extend(batch)
    finally:
        if is_unchecked:
            restore_checks(cursor.connection)
    return doubtful


def insert_statement(rows: Sequence[NewRow], *, now: datetime) -> tuple[str, list[object]]:
    """For a few rows, with the values that it is bound to."""
    now_us = to_us(now)
    values: list[object]
    if all(row[10:] == _LEFT_OUT for row in rows):
        values = [value for row in rows for value in (*row[:9], to_us(row.created_at), now_us)]
        return _statement(INSERT_PLAIN, NEW_PLAIN_ROW, len(rows)), values
    values = [value for row in rows for value in _columns(row, now=now, now_us=now_us)]
    return _statement(INSERT, NEW_ROW, len(rows)), values


def _columns(row: NewRow, *, now: datetime, now_us: int) -> tuple[object, ...]:
    run_at = None if row.run_at is None or row.run_at <= now else to_us(row.run_at)
    return (
        *row[:9],
        to_us(row.created_at),
        row.unique_key,
        run_at,
        None if run_at is None else row.reason,
        row.recurring_id,
        None if row.fire_at is None else to_us(row.fire_at),
        "enqueued" if run_at is None else "scheduled",
        now_us,
    )


@cache
def _statement(insert: str, row: str, rows: int) -> str:
    return insert.format(rows=", ".join([row] * rows))
