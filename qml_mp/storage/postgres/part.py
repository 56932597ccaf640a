"""Every process: what the parts of the PostgreSQL storage share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from qml_mp.core.job import Claim, Job
from qml_mp.storage.postgres.connection import ProcessConnection
from qml_mp.storage.postgres.instants import from_column
from qml_mp.storage.rows import claim_of, job_of


class Part:
    """A part of the storage: some operations of the protocol on the one database."""

    def __init__(self, database: ProcessConnection) -> None:
        self._database = database

    def now(self) -> datetime:
        """The database's clock."""
        with self._database.use("asking for the time", checked=False) as link:
            row = link.execute("SELECT clock_timestamp() AS now").fetchone()
        now = from_column(row and row["now"])
        assert now is not None  # the statement always gives one row
        return now


def job_from(row: Mapping[str, Any]) -> Job:
    """The job of a row of JOB_COLUMNS."""
    return job_of(row, from_column)


def claims_from(rows: Iterable[Mapping[str, Any]]) -> list[Claim]:
    """The claims of rows of JOB_COLUMNS."""
    return [claim_of(row, from_column) for row in rows]
