"""Every process: new jobs written into an open transaction on PostgreSQL, ours or the caller's.

Many go by COPY, which costs the server half of what an INSERT does, and the client a sixth. COPY knows no ON
CONFLICT. So what may be there already goes by INSERT: a job with a unique key or a firing; and all of them,
when COPY has met an id that was stored before a reply was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import pq

from qml_mp.storage.database import Result, Values
from qml_mp.storage.postgres.queries.jobs import INSERT_MANY, INSERT_ONE, TELL
from qml_mp.storage.storable import NewRow

_FEWEST_COPIED = 50
_PLAIN_COLUMNS = NewRow._fields[: NewRow._fields.index("unique_key")]
_NOT_PLAIN = (None,) * (len(NewRow._fields) - len(_PLAIN_COLUMNS))
# Keep a statement well below statement_timeout, and what both sides hold of it below a few megabytes.
_ROWS_PER_STATEMENT = 2000
_TEXT_PER_STATEMENT = 4 * 1024 * 1024

Run = Callable[[str, Values], Result]


def insert_jobs(
    connection: psycopg.Connection[Any], rows: Sequence[NewRow], *, run: Run, copy: bytes
) -> list[NewRow]:
    """`Transaction.insert`. `run` runs a query on the connection; `copy` is `COPY` made ready for it."""
    if len(rows) == 1:
        return [] if run(INSERT_ONE, {**rows[0]._asdict(), "tells": True}).rows() else list(rows)
    copied = [row for row in rows if is_plain(row)]
    if len(copied) < _FEWEST_COPIED or connection.pgconn.pipeline_status != pq.PipelineStatus.OFF:
        return _insert(rows, run)
    others = [row for row in rows if not is_plain(row)]
    if not _copy(psycopg.Cursor(connection), copied, copy):
        return _insert(rows, run)
    run(TELL, {})
    return _insert(others, run)


def is_plain(row: NewRow) -> bool:
    """Whether the job can run now, and nothing but its id can be there already."""
    return row[len(_PLAIN_COLUMNS) :] == _NOT_PLAIN


def plain_values(row: NewRow) -> Values:
    """What `INSERT_PLAIN` is bound to."""
    return dict(zip(_PLAIN_COLUMNS, row, strict=False))


def _copy(cursor: psycopg.Cursor[Any], rows: Sequence[NewRow], statement: bytes) -> bool:
    """Whether they are stored; False: none is, because the id of one was there already, or because the table
    has row security, which COPY does not know."""
    cursor.execute("SAVEPOINT qml_mp_copy")
    try:
        for batch in _batches(rows):
            with cursor.copy(statement) as copy:
                for row in batch:
                    copy.write_row(row[: len(_PLAIN_COLUMNS)])
        is_stored = True
    except (psycopg.errors.UniqueViolation, psycopg.errors.FeatureNotSupported):
        cursor.execute("ROLLBACK TO SAVEPOINT qml_mp_copy")
        is_stored = False
    cursor.execute("RELEASE SAVEPOINT qml_mp_copy")
    return is_stored


def _insert(rows: Sequence[NewRow], run: Run) -> list[NewRow]:
    missing: list[NewRow] = []
    # Keys in one order everywhere, so that two producers cannot deadlock.
    for batch in _batches(sorted(rows, key=lambda row: row.unique_key or "")):
        columns = map(list, zip(*batch, strict=True))
        added = run(INSERT_MANY, dict(zip(NewRow._fields, columns, strict=True))).rows()
        stored = {row["id"] for row in added}
        missing.extend(row for row in batch if row.id not in stored)
    return missing


def _batches(rows: Sequence[NewRow]) -> Iterator[list[NewRow]]:
    batch: list[NewRow] = []
    text = 0
    for row in rows:
        batch.append(row)
        text += len(row.payload) + len(row.metadata)
        if len(batch) == _ROWS_PER_STATEMENT or text >= _TEXT_PER_STATEMENT:
            yield batch
            batch, text = [], 0
    if batch:
        yield batch
