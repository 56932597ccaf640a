"""Every process: the history."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.history_queries import HistoryQueries
from qml_mp.storage.postgres.queries.common import RELEASED


def _read(column: str) -> str:
    return f"""
        SELECT begins_at, {column} AS told FROM {{s}}.history
        WHERE step_s = %(step_s)s AND begins_at >= %(since)s AND begins_at < %(until)s
    """


HISTORY: Final = HistoryQueries(
    # What a period holds only grows: a write that comes late, or again, takes nothing back. Nobody else
    # writes these rows, so no order of locks is needed.
    note="""
        WITH noted AS (
            INSERT INTO {s}.history AS h (step_s, begins_at, writer, claims, totals, queues, methods)
            SELECT step_s, to_timestamp(begins_s), writer, claims, totals, queues, methods::jsonb
            FROM json_to_recordset(%(rows)s::json) AS given (
                step_s integer, begins_s bigint, writer text, claims bigint,
                totals text, queues text, methods text)
            ON CONFLICT (step_s, begins_at, writer) DO UPDATE
            SET claims = excluded.claims, totals = excluded.totals, queues = excluded.queues,
                methods = excluded.methods
            WHERE excluded.claims > h.claims
            RETURNING step_s
        )
        SELECT count(*) AS count FROM noted
    """,
    totals=_read("totals"),
    queues=_read("queues"),
    methods=_read("methods::text"),
    # The methods of a row are a hundred times as much.
    method="""
        SELECT begins_at, (methods -> %(method)s)::text AS told FROM {s}.history
        WHERE step_s = %(step_s)s AND begins_at >= %(since)s AND begins_at < %(until)s
    """,
    # LIMIT: each job is looked up by itself, however many the planner expects.
    recorded=f"""
        SELECT job.*, key.claim_seq AS of_claim,
               (SELECT a.kind FROM {{s}}.attempts AS a
                WHERE a.job_id = key.job_id AND a.claim_seq = key.claim_seq) AS ended_as
        FROM unnest(%(ids)s::text[], %(claim_seqs)s::bigint[]) AS key (job_id, claim_seq)
        CROSS JOIN LATERAL (SELECT {RELEASED} FROM {{s}}.jobs AS j WHERE j.id = key.job_id LIMIT 1) AS job
    """,
    any_old=None,
    # The first condition is for the index; of those it lets through, only the newest of each length stay.
    forget="""
        DELETE FROM {s}.history WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {s}.history
            WHERE begins_at < now() - %(older_than)s::interval
              AND begins_at + step_s * interval '1 second' <= now() - %(older_than)s::interval
            ORDER BY begins_at LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED)) -- another server deletes the others
    """,
)
