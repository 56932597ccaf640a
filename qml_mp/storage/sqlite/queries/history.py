"""Every process: the history."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.history_queries import HistoryQueries
from qml_mp.storage.job_rows import released_columns

# The first condition is for the index; of those it lets through, only the newest of each length stay.
_OLD: Final = "begins_at < :now - :older_than AND begins_at + step_s * 1000000 <= :now - :older_than"


def _read(column: str) -> str:
    return f"""
        SELECT begins_at, {column} AS told FROM qml_history
        WHERE step_s = :step_s AND begins_at >= :since AND begins_at < :until
    """


HISTORY: Final = HistoryQueries(
    # What a period holds only grows: a write that comes late, or again, takes nothing back.
    note="""
        INSERT INTO qml_history (step_s, begins_at, writer, claims, totals, queues, methods)
        SELECT json_extract(value, '$.step_s'), json_extract(value, '$.begins_s') * 1000000,
               json_extract(value, '$.writer'), json_extract(value, '$.claims'),
               json_extract(value, '$.totals'), json_extract(value, '$.queues'),
               json_extract(value, '$.methods')
        FROM json_each(:rows) WHERE true -- or ON would be a join's
        ON CONFLICT (step_s, begins_at, writer) DO UPDATE
        SET claims = excluded.claims, totals = excluded.totals, queues = excluded.queues,
            methods = excluded.methods
        WHERE excluded.claims > qml_history.claims
    """,
    totals=_read("totals"),
    queues=_read("queues"),
    methods=_read("methods"),
    # The methods of a row are a hundred times as much.
    method="""
        SELECT begins_at, one.value AS told
        FROM qml_history, json_each(CASE WHEN json_valid(methods) THEN methods ELSE '{}' END) AS one
        WHERE step_s = :step_s AND begins_at >= :since AND begins_at < :until AND one.key = :method
    """,
    recorded=f"""
        SELECT {released_columns(of="j.")}, seqs.value AS of_claim,
               (SELECT kind FROM qml_attempts WHERE job_id = ids.value AND claim_seq = seqs.value) AS ended_as
        FROM json_each(:ids) AS ids JOIN json_each(:claim_seqs) AS seqs ON seqs.key = ids.key
        CROSS JOIN qml_jobs AS j ON j.id = ids.value -- each is looked up
    """,
    any_old=f"SELECT 1 AS old FROM qml_history INDEXED BY qml_history_by_age WHERE {_OLD} LIMIT 1",
    forget=f"""
        DELETE FROM qml_history WHERE rowid IN (
            SELECT rowid FROM qml_history INDEXED BY qml_history_by_age
            WHERE {_OLD} ORDER BY begins_at LIMIT :limit)
    """,
)
