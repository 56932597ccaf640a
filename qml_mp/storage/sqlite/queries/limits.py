"""Every process: what holds back the jobs of queues and methods."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.queries import LimitQueries
from qml_mp.storage.sqlite.queries.common import HOLDS_BACK


def _set(columns: str, values: str) -> str:
    """Only these columns: another program may set others of the row at the same moment."""
    return f"""
        INSERT INTO qml_limits (kind, name, {columns}) VALUES (:kind, :name, {values})
        ON CONFLICT (kind, name) DO UPDATE SET ({columns}) = ({values})
    """


_ENTRIES: Final = "FROM qml_jobs INDEXED BY qml_jobs_enqueued WHERE state = 'enqueued'"


# One look at the index each: for (queue, method) > (…) it would be asked for the queue alone.
_NEXT_METHOD: Final = f"""
    (SELECT rowid {_ENTRIES} AND queue = h.queue AND method > h.method
     ORDER BY method, priority DESC, created_at, id LIMIT 1)
"""
_NEXT_QUEUE: Final = f"""
    (SELECT rowid {_ENTRIES} AND queue > h.queue
     ORDER BY queue, method, priority DESC, created_at, id LIMIT 1)
"""


def _waiting(start: str, following: str) -> str:
    """The head of each method of each queue, by steps as a claim goes."""
    return f"""
        WITH RECURSIVE waits (job) AS (
            {start}
            UNION ALL
            SELECT {following} FROM waits JOIN qml_jobs AS h ON h.rowid = waits.job)
        SELECT queue, method, priority, created_at, id
        FROM waits JOIN qml_jobs AS head ON head.rowid = waits.job
        WHERE :methods IS NULL OR method IN (SELECT value FROM json_each(:methods))
        ORDER BY priority DESC, created_at, id
    """


LIMITS: Final = LimitQueries(
    any=f"SELECT 1 FROM qml_limits WHERE {HOLDS_BACK} LIMIT 1",
    standings=f"""
        WITH running AS MATERIALIZED (
            SELECT queue, method, count(*) AS jobs FROM qml_jobs INDEXED BY qml_jobs_processing
            WHERE state = 'processing' GROUP BY queue, method)
        SELECT kind, name, paused, max_running, rate, per_us, next_at, :now AS now,
            (SELECT coalesce(sum(jobs), 0) FROM running
             WHERE iif(kind = 'queue', queue, method) = name) AS running
        FROM qml_limits WHERE {HOLDS_BACK} ORDER BY kind, name
    """,
    waiting_in_all=_waiting(
        f"SELECT (SELECT rowid {_ENTRIES} ORDER BY queue, method, priority DESC, created_at, id LIMIT 1)",
        f"COALESCE({_NEXT_METHOD}, {_NEXT_QUEUE})",
    ),
    waiting_in_served=_waiting(
        f"SELECT (SELECT rowid {_ENTRIES} AND queue = served.value "
        "ORDER BY method, priority DESC, created_at, id LIMIT 1) FROM json_each(:queues) AS served",
        _NEXT_METHOD,
    ),
    lock="SELECT kind, name FROM qml_limits",  # all: the write lock is held
    spend="UPDATE qml_limits SET next_at = :next_at WHERE kind = :kind AND name = :name",
    tell_of_a_place=None,  # a commit tells of itself
    set_paused=_set("paused", ":paused"),
    set_max_running=_set("max_running", ":max_running"),
    set_rate=_set("rate, per_us", ":rate, :per_us"),
    remove_if_empty=f"""
        DELETE FROM qml_limits WHERE NOT {HOLDS_BACK} AND (next_at IS NULL OR next_at <= :now)
    """,
)
