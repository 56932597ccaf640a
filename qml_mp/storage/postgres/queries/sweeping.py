"""Every process: what moves jobs from outside of their workers: time, cancels, cleanup, recovery."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.columns import JOB, TELL_IF_ANY
from qml_mp.storage.queries import SweepQueries

SWEEPING: Final = SweepQueries(
    stranded=f"""
        SELECT {JOB} FROM {{s}}.jobs AS j
        WHERE j.state = 'processing' AND coalesce(j.started_at, j.created_at) < %(stale_before)s
          AND (j.server_id IS NULL OR j.server_id <> ALL(%(spared)s::text[]))
        ORDER BY j.started_at, j.id
        -- SKIP LOCKED: a claim that is just being finished is not stranded.
        FOR UPDATE SKIP LOCKED
    """,
    next_due="""
        SELECT run_at AS due_at, now() AS now FROM {s}.jobs
        WHERE state IN ('scheduled', 'awaiting_retry')
        ORDER BY run_at, id LIMIT 1
    """,
    promote=f"""
        WITH due AS MATERIALIZED (
            SELECT id FROM {{s}}.jobs
            WHERE state IN ('scheduled', 'awaiting_retry') AND run_at <= now()
            ORDER BY run_at, id
            -- SKIP LOCKED: another scheduler promotes those rows, or a person is just changing them.
            LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        ), promoted AS (
            UPDATE {{s}}.jobs AS j SET state = 'enqueued', enqueued_at = now(), run_at = NULL, reason = NULL
            FROM due WHERE j.id = due.id
            RETURNING j.id
        )
        SELECT count(*) AS count, {TELL_IF_ANY} FROM promoted
    """,
    hasten_retries=f"""
        WITH hastened AS (
            UPDATE {{s}}.jobs
            SET run_at = run_at - (enqueued_at - clock_timestamp()), enqueued_at = clock_timestamp()
            -- clock_timestamp(), because an attempt may have ended since this transaction began.
            WHERE state = 'awaiting_retry' AND enqueued_at > clock_timestamp() RETURNING id
        )
        SELECT count(*) AS count, {TELL_IF_ANY} FROM hastened
    """,
    # FOR UPDATE: a claim or an end of the job comes wholly before or after what follows.
    lock_state="SELECT state FROM {s}.jobs WHERE id = %(id)s FOR UPDATE",
    cancel_waiting="""
        UPDATE {s}.jobs
        SET state = 'deleted', reason = %(reason)s, finished_at = now(),
            expires_at = now() + %(ttl)s::interval, run_at = NULL
        WHERE id = %(id)s AND state IN ('enqueued', 'scheduled', 'awaiting_retry')
    """,
    request_cancel=f"""
        WITH asked AS (
            UPDATE {{s}}.jobs SET cancel_reason = coalesce(cancel_reason, %(reason)s)
            WHERE id = %(id)s AND state = 'processing' RETURNING id
        )
        SELECT count(*) AS count, {TELL_IF_ANY} FROM asked
    """,
    cancel_requests="""
        SELECT id, claim_seq, worker_id, cancel_reason FROM {s}.jobs
        WHERE state = 'processing' AND server_id = %(server_id)s AND cancel_reason IS NOT NULL
        ORDER BY started_at, id
    """,
    any_expired="""
        SELECT 1 FROM {s}.jobs
        WHERE state IN ('succeeded', 'failed', 'deleted') AND expires_at <= now() LIMIT 1
    """,
    delete_expired="""
        DELETE FROM {s}.jobs WHERE id IN (
            SELECT id FROM {s}.jobs
            WHERE state IN ('succeeded', 'failed', 'deleted') AND expires_at <= now()
            -- SKIP LOCKED: a job that a person is just retrying is not deleted under their hands.
            ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
        )
    """,
)
