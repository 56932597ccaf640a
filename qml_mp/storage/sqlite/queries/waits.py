"""Every process: waiting for the ends of jobs."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.job_rows import JOB_COLUMNS
from qml_mp.storage.sqlite.queries.common import ENDED
from qml_mp.storage.telling_queries import WaitQueries

WAITS: Final = WaitQueries(
    ended=f"""
        SELECT asked_id, NULL AS found, {JOB_COLUMNS}
        FROM (SELECT value AS asked_id FROM json_each(:ids)) LEFT JOIN qml_jobs ON qml_jobs.id = asked_id
        WHERE qml_jobs.id IS NULL OR {ENDED}
    """,
    begin=None,
    end=None,
)
