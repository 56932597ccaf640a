"""Every process: what is told by NOTIFY with the outcomes of claims."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.common import Told

_MOST_TOLD_BYTES: Final = 7900
"""Of one notification; the server takes less than 8000."""


def told_to_waiters(ended: str) -> str:
    """Always 0: tells those who wait for any of the jobs whose ids are in the array `ended`. A number, so
    that a query with many rows can add it to one that it has, and needs no column for it.

    A NOTIFY has commits wait for each other, so there is none when nobody waits for these jobs. Who begins
    to wait meanwhile, and is not seen by this statement, looks again soon.
    """
    ids = "string_agg(DISTINCT w.job_id, ',')"
    return f"""
        CASE WHEN EXISTS (SELECT FROM {{s}}.waits) THEN coalesce((
            SELECT length(pg_notify(%(ended_channel)s,
                CASE WHEN octet_length({ids}) <= {_MOST_TOLD_BYTES} THEN {ids} ELSE '' END)::text)
            FROM {{s}}.waits AS w WHERE w.job_id = ANY({ended}) HAVING count(*) > 0
        ), 0) ELSE 0 END
    """


COUNT: Final = f"""
    (SELECT count(*) FROM finished) + {told_to_waiters("ARRAY(SELECT id FROM finished)")} AS count
"""
"""How many rows of `finished` there are; those who wait for them are told."""

_HAS_PLACES: Final = "EXISTS (SELECT FROM {s}.limits WHERE max_running IS NOT NULL)"

OF_A_PLACE: Final = f"CASE WHEN {_HAS_PLACES} THEN pg_notify(%(channel)s, '{Told.ONE_JOB}') END AS told"
"""A place may be free under a limit."""

# A job that will run again is announced, and so is a place that is free again.
OF_AN_OUTCOME: Final = f"""
    CASE WHEN %(state)s = 'enqueued' OR {_HAS_PLACES} THEN pg_notify(%(channel)s, '{Told.MANY}')
         WHEN %(state)s = 'awaiting_retry' THEN pg_notify(%(channel)s, '{Told.NO_JOB}') END AS told,
    CASE WHEN NOT %(waits)s THEN {told_to_waiters("ARRAY[finished.id]")} END AS told_waiters
"""
"""What became of one job, the row of `finished`."""
