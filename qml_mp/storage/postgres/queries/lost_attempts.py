"""Every process: attempts that somebody else has ended than the worker that began them."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.telling_queries import LostAttemptQueries

_FREE: Final = """
    l.method = ANY(%(methods)s::text[])
    AND (l.tries = 0 OR l.due_at <= now()
         OR (l.taken_by IS NOT NULL AND NOT EXISTS (SELECT FROM {s}.workers AS w WHERE w.id = l.taken_by)))
"""

LOST_ATTEMPTS: Final = LostAttemptQueries(
    # In the transaction that ends it.
    note="""
        INSERT INTO {s}.lost_attempts (job_id, claim_seq, method, facts, ended_at, due_at)
        SELECT %(id)s, %(claim_seq)s, hook.method, %(facts)s, now(), now() FROM {s}.failure_hooks AS hook
        WHERE hook.method = %(method)s AND hook.traces
        ON CONFLICT (job_id, claim_seq) DO NOTHING
    """,
    due=f"SELECT 1 AS due FROM {{s}}.lost_attempts AS l WHERE {_FREE} LIMIT 1",
    # Those that others take at this moment are passed over. By their places, as no plan joins these with all
    # there are.
    take=f"""
        UPDATE {{s}}.lost_attempts
        SET tries = tries + 1, taken_by = %(worker_id)s,
          due_at = now() + %(lease)s::interval * (1 << least(tries, 10)) -- of a minute, 17 hours
        WHERE ctid = ANY(ARRAY(
            SELECT l.ctid FROM {{s}}.lost_attempts AS l
            WHERE {_FREE} AND EXISTS (SELECT FROM {{s}}.workers AS own WHERE own.id = %(worker_id)s)
            ORDER BY l.due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
        RETURNING job_id, claim_seq, facts, ended_at
    """,
    hasten="""
        UPDATE {s}.lost_attempts SET due_at = now()
        WHERE tries > 0 AND due_at > now() + interval '1 minute' * ((1 << least(tries - 1, 10)) + 1)
    """,
    end="""
        DELETE FROM {s}.lost_attempts
        WHERE taken_by = %(worker_id)s AND job_id = ANY(%(ids)s::text[]) AND (job_id, claim_seq) IN (
            SELECT * FROM unnest(%(ids)s::text[], %(claim_seqs)s::integer[])
        )
    """,
    any_old=None,
    forget="""
        DELETE FROM {s}.lost_attempts WHERE ctid = ANY(ARRAY(
            SELECT ctid FROM {s}.lost_attempts WHERE ended_at < now() - interval '1 day'
            ORDER BY ended_at LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED)) -- another server deletes the others
    """,
)
