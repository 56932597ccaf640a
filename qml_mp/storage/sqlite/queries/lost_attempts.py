"""Every process: attempts that somebody else has ended than the worker that began them."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.sqlite.queries.common import EARLY_SPAN, FREE
from qml_mp.storage.telling_queries import LostAttemptQueries

_OLD: Final = "ended_at < :now - 86400000000"

LOST_ATTEMPTS: Final = LostAttemptQueries(
    # In the transaction that ends it.
    note="""
        INSERT OR IGNORE INTO qml_lost_attempts (job_id, claim_seq, method, facts, ended_at, due_at)
        SELECT :id, :claim_seq, method, :facts, :now, :now FROM qml_failure_hooks
        WHERE method = :method AND traces
    """,
    due=f"SELECT 1 FROM qml_lost_attempts WHERE {FREE} LIMIT 1",
    take=f"""
        UPDATE qml_lost_attempts SET tries = tries + 1, taken_by = :worker_id,
          due_at = :now + :lease * (1 << MIN(tries, 10)) -- of a minute, 17 hours
        WHERE rowid IN (SELECT rowid FROM qml_lost_attempts WHERE {FREE} ORDER BY due_at LIMIT :limit)
          AND EXISTS (SELECT 1 FROM qml_workers WHERE id = :worker_id)
        RETURNING job_id, claim_seq, facts, ended_at
    """,
    hasten=f"UPDATE qml_lost_attempts SET due_at = :now WHERE {EARLY_SPAN}",
    end="""
        DELETE FROM qml_lost_attempts WHERE taken_by = :worker_id AND (job_id, claim_seq) IN (
            SELECT ids.value, seqs.value FROM json_each(:ids) AS ids
            JOIN json_each(:claim_seqs) AS seqs ON seqs.key = ids.key
        )
    """,
    any_old=f"SELECT 1 AS old FROM qml_lost_attempts INDEXED BY qml_lost_attempts_ended WHERE {_OLD} LIMIT 1",
    forget=f"""
        DELETE FROM qml_lost_attempts WHERE rowid IN (
            SELECT rowid FROM qml_lost_attempts INDEXED BY qml_lost_attempts_ended
            WHERE {_OLD} ORDER BY ended_at LIMIT :limit)
    """,
)
