"""Every process: callbacks of failures."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.telling_queries import FailureQueries

_FREE: Final = """
    c.method = ANY(%(methods)s::text[])
    AND (c.tries = 0 OR c.due_at <= now()
         OR (c.taken_by IS NOT NULL AND NOT EXISTS (SELECT FROM {s}.workers AS w WHERE w.id = c.taken_by)))
"""
# The state is written so that no index has a part in it, as in `bulk`.
_NOTE: Final = """
    INSERT INTO {{s}}.failure_callbacks (job_id, claim_seq, method, due_at)
    SELECT j.id, j.claim_seq, j.method, now() FROM {{s}}.jobs AS j
    WHERE {which} AND j.state || '' = 'failed'
      AND EXISTS (SELECT FROM {{s}}.failure_hooks AS hook WHERE hook.method = j.method AND hook.calls)
    ON CONFLICT (job_id, claim_seq) DO NOTHING
"""
_THIS: Final = "job_id = %(job_id)s AND claim_seq = %(claim_seq)s AND tries = %(tries)s"
# Not EXISTS, which could be planned as a join that reads all jobs.
_GONE: Final = """
    (SELECT 1 FROM {s}.jobs AS j WHERE j.id = c.job_id AND j.state <> 'deleted' LIMIT 1) IS NULL
"""

FAILURES: Final = FailureQueries(
    hooked="SELECT method, calls, traces FROM {s}.failure_hooks WHERE method = ANY(%(methods)s::text[])",
    # In one order: several workers declare the same ones at a time.
    hook="""
        INSERT INTO {s}.failure_hooks (method, calls, traces)
        SELECT method, %(calls)s::boolean, %(traces)s::boolean
        FROM unnest(%(methods)s::text[]) AS wanted (method) ORDER BY method
        ON CONFLICT (method) DO UPDATE SET calls = EXCLUDED.calls, traces = EXCLUDED.traces
    """,
    unhook="DELETE FROM {s}.failure_hooks WHERE method = ANY(%(methods)s::text[])",
    # In the transaction that writes the failure.
    note=_NOTE.format(which="j.id = %(id)s AND j.claim_seq = %(claim_seq)s"),
    note_all=_NOTE.format(which="j.id = ANY(%(ids)s::text[])"),
    due=f"SELECT 1 AS due FROM {{s}}.failure_callbacks AS c WHERE {_FREE} LIMIT 1",
    # Those that others take at this moment are passed over. No join, by which a plan may ask for the one anew
    # for each row there is, and pass over what it has taken: it would take all of them.
    take=f"""
        UPDATE {{s}}.failure_callbacks
        SET tries = tries + 1, taken_by = %(worker_id)s, due_at = now() + %(lease)s::interval
        WHERE (job_id, claim_seq) = (
            SELECT c.job_id, c.claim_seq FROM {{s}}.failure_callbacks AS c
            WHERE {_FREE} AND EXISTS (SELECT FROM {{s}}.workers AS own WHERE own.id = %(worker_id)s)
            ORDER BY c.due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING job_id, claim_seq, tries
    """,
    postpone=f"""
        UPDATE {{s}}.failure_callbacks SET taken_by = NULL, due_at = now() + %(delay)s::interval WHERE {_THIS}
    """,
    hasten="""
        UPDATE {s}.failure_callbacks SET due_at = now()
        WHERE taken_by IS NULL AND due_at > now() + interval '6 minutes'
    """,
    end=f"DELETE FROM {{s}}.failure_callbacks WHERE {_THIS}",
    looked_through=f"""
        SELECT c.job_id, {_GONE} AS is_gone FROM {{s}}.failure_callbacks AS c
        WHERE c.job_id > %(after)s ORDER BY c.job_id LIMIT %(limit)s
    """,
    forget=f"DELETE FROM {{s}}.failure_callbacks AS c WHERE c.job_id = ANY(%(ids)s::text[]) AND {_GONE}",
)
