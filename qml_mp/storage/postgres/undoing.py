"""Every process: what is undone when PostgreSQL refuses it, in a transaction that goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import psycopg

from qml_mp.storage.database import Result, RowsRefused
from qml_mp.storage.postgres.errors import refuses_rows, refuses_values

_T = TypeVar("_T")


def refusal_of(connection: psycopg.Connection[Any], attempt: Callable[[], object]) -> str | None:
    """`Transaction.refusal_of`."""
    try:
        with connection.transaction(force_rollback=True):
            attempt()
    except psycopg.Error as error:
        if not refuses_values(error):
            raise
        return f"{error.diag.message_primary}."
    return None


def apart(run: Callable[[str], Result], write: Callable[[], _T]) -> _T:
    """`Transaction.apart`; `run` runs a query in the transaction."""
    run("SAVEPOINT qml_mp_apart")
    try:
        written = write()
        # A deferred one would refuse all at the commit. Undone, so that what comes next may defer again.
        run("SAVEPOINT qml_mp_checked")
        run("SET CONSTRAINTS ALL IMMEDIATE")
        run("ROLLBACK TO SAVEPOINT qml_mp_checked")
        run("RELEASE SAVEPOINT qml_mp_apart").rows()  # waits for the replies to what was written
    except psycopg.Error as error:
        if not refuses_rows(error):
            raise
        run("ROLLBACK TO SAVEPOINT qml_mp_apart")
        run("RELEASE SAVEPOINT qml_mp_apart")
        raise RowsRefused(f"{error.diag.message_primary}.") from error
    return written
