"""Every process: jobs as rows."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.postgres.queries.common import JOB, RELEASED, TELL_IF_ANY, Told, counted
from qml_mp.storage.postgres.queries.telling import COUNT, told_to_waiters
from qml_mp.storage.queries import JobQueries

_COLUMNS: Final = """
    id, method, queue, priority, payload, metadata, max_retries, max_crashes, timeout_us, created_at,
    unique_key, recurring_id, fire_at, state, run_at, reason, enqueued_at
"""

# Transactions with a NOTIFY commit one after the other, each waiting for the disk alone: of several producers
# one at a time may tell with its own commit. It need not ask the server a second time.
_MAY_TELL: Final = "pg_try_advisory_xact_lock(hashtextextended(%(channel)s, 1))"

INSERT_PLAIN: Final = f"""
    INSERT INTO {{s}}.jobs
        (id, method, queue, priority, payload, metadata, max_retries, max_crashes, timeout_us, created_at)
    VALUES (%(id)s, %(method)s, %(queue)s, %(priority)s, %(payload)s, %(metadata)s, %(max_retries)s,
            %(max_crashes)s, %(timeout_us)s, %(created_at)s)
    ON CONFLICT DO NOTHING -- this very job, stored before a reply was lost
    RETURNING '{Told.ONE_JOB}' AS to_tell,
              CASE WHEN {_MAY_TELL} THEN pg_notify(%(channel)s, '{Told.ONE_JOB}') END AS told
"""
"""What `COPY` takes of a `storable.NewRow`; returns as `INSERT_ONE` does, which takes a tenth more time."""

INSERT_ONE: Final = f"""
    INSERT INTO {{s}}.jobs ({_COLUMNS})
    VALUES (%(id)s, %(method)s, %(queue)s, %(priority)s, %(payload)s, %(metadata)s, %(max_retries)s,
            %(max_crashes)s, %(timeout_us)s, %(created_at)s, %(unique_key)s, %(recurring_id)s, %(fire_at)s,
            CASE WHEN %(run_at)s::timestamptz > now() THEN 'scheduled' ELSE 'enqueued' END,
            CASE WHEN %(run_at)s::timestamptz > now() THEN %(run_at)s::timestamptz END,
            CASE WHEN %(run_at)s::timestamptz > now() THEN %(reason)s END, now())
    -- A key or firing that is taken, or this very job, stored before a reply was lost.
    ON CONFLICT DO NOTHING
    RETURNING CASE state WHEN 'enqueued' THEN '{Told.ONE_JOB}' ELSE '{Told.NO_JOB}' END AS to_tell,
              CASE WHEN %(tells)s THEN pg_notify(%(channel)s, '{Told.MANY}')
                   WHEN {_MAY_TELL} THEN pg_notify(%(channel)s, CASE state
                       WHEN 'enqueued' THEN '{Told.ONE_JOB}' ELSE '{Told.NO_JOB}' END)
              END AS told
"""
"""A `storable.NewRow`, and whether it must tell itself; a row when it was stored. `told` is NULL when what is
`to_tell` still has to be told."""

INSERT_MANY: Final = f"""
    WITH added AS (
        INSERT INTO {{s}}.jobs ({_COLUMNS})
        SELECT n.id, n.method, n.queue, n.priority, n.payload, n.metadata, n.max_retries, n.max_crashes,
               n.timeout_us, n.created_at, n.unique_key, n.recurring_id, n.fire_at,
               CASE WHEN n.run_at > now() THEN 'scheduled' ELSE 'enqueued' END,
               CASE WHEN n.run_at > now() THEN n.run_at END,
               CASE WHEN n.run_at > now() THEN n.reason END, now()
        FROM unnest(%(id)s::text[], %(method)s::text[], %(queue)s::text[], %(priority)s::integer[],
                    %(payload)s::text[], %(metadata)s::text[], %(max_retries)s::integer[],
                    %(max_crashes)s::integer[], %(timeout_us)s::bigint[], %(created_at)s::timestamptz[],
                    %(unique_key)s::text[], %(run_at)s::timestamptz[], %(reason)s::text[],
                    %(recurring_id)s::text[], %(fire_at)s::timestamptz[]) WITH ORDINALITY
          AS n (id, method, queue, priority, payload, metadata, max_retries, max_crashes, timeout_us,
                created_at, unique_key, run_at, reason, recurring_id, fire_at, place)
        -- In the order given: of one key the first job is stored.
        ORDER BY n.place
        ON CONFLICT DO NOTHING -- as above
        RETURNING id
    ), told AS MATERIALIZED (
        SELECT {TELL_IF_ANY} FROM added
    )
    SELECT id, told FROM added CROSS JOIN told
"""
"""A list for each column of `storable.NewRow`; the ids of those that were stored."""

COPY: Final = """
    COPY {s}.jobs (id, method, queue, priority, payload, metadata, max_retries, max_crashes, timeout_us,
                   created_at)
    FROM STDIN
"""
"""The first columns of `storable.NewRow`, for jobs that can run now and have nothing in the others. State and
`enqueued_at` have the table's defaults: Enqueued, now. An id that is there already is an error."""

TELL: Final = f"SELECT pg_notify(%(channel)s, '{Told.MANY}') AS told"
"""Announce the commit."""

# The job of a failure that is to be told stays until it was; nobody makes a call that has been due for a day.
# Not EXISTS, which could be planned as a join that reads all expired jobs.
_EXPIRED: Final = """
    j.state IN ('succeeded', 'failed', 'deleted') AND j.expires_at <= now()
    AND (SELECT 1 FROM {s}.failure_callbacks AS c
         WHERE c.job_id = j.id AND c.due_at > now() - interval '1 day' LIMIT 1) IS NULL
"""

# Not `<> ALL`, which compares each of those spared with each: they may be thousands, and are the oldest.
_EXPIRED_FIRST: Final = f"""
    SELECT j.id FROM {{s}}.jobs AS j
    WHERE {_EXPIRED} AND j.id NOT IN (SELECT unnest(%(spared)s::text[]))
    ORDER BY j.expires_at LIMIT %(limit)s
"""

_IS_DUE: Final = "state IN ('scheduled', 'awaiting_retry') AND run_at <= now()"
_DUE_FIRST: Final = f"""
    SELECT id FROM {{s}}.jobs WHERE {_IS_DUE} AND id <> ALL(%(spared)s::text[])
    ORDER BY run_at, id LIMIT %(limit)s
"""


def _promote(which: str) -> str:
    """An array, because a plan that is kept takes a limit that it does not know for a tenth of all, and would
    read the whole table instead of these rows. Changes of many jobs ask for the reason."""
    # SKIP LOCKED: another scheduler promotes those rows, or a person is just changing them.
    return f"""
        WITH promoted AS (
            UPDATE {{s}}.jobs SET state = 'enqueued', enqueued_at = now(), run_at = NULL, reason = 'due'
            WHERE id = ANY(ARRAY({which} FOR UPDATE SKIP LOCKED))
            RETURNING id
        )
        SELECT count(*) AS count,
               CASE count(*) WHEN 0 THEN NULL WHEN 1 THEN pg_notify(%(channel)s, '{Told.ONE_JOB}')
                             ELSE pg_notify(%(channel)s, '{Told.MANY}') END AS told
        FROM promoted
    """


def _delete_expired(which: str) -> str:
    """An array as above."""
    # SKIP LOCKED: a job that a person is just retrying is not deleted under their hands.
    return f"DELETE FROM {{s}}.jobs WHERE id = ANY(ARRAY({which} FOR UPDATE SKIP LOCKED))"


# By now() the index is searched (jobs_failures), where the other one has each row read. By clock_timestamp(),
# because an attempt may have ended since this transaction began.
_FROM_THE_FUTURE: Final = "enqueued_at > now() AND enqueued_at > clock_timestamp()"
_EARLY_RETRY: Final = f"state = 'awaiting_retry' AND {_FROM_THE_FUTURE}"
# The first two conditions are those of the index on unfinished jobs of templates.
_EARLY_FIRING: Final = f"""
    recurring_id IS NOT NULL AND state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry')
    AND state = 'scheduled' AND fire_at IS NOT NULL AND {_FROM_THE_FUTURE}
"""
# An instant after all time, which another program has written, leaves no delay. PostgreSQL subtracts no
# infinite one before version 17, and from then on the table refuses what comes of it.
_SOONER: Final = """
    run_at = clock_timestamp() + greatest(run_at - least(enqueued_at, '9999-12-30Z'), interval '0'),
    enqueued_at = clock_timestamp()
"""

JOBS: Final = JobQueries(
    holders="""
        SELECT id, unique_key, false AS is_live FROM {s}.jobs WHERE id = ANY(%(ids)s::text[])
        UNION ALL
        SELECT id, unique_key, true FROM {s}.jobs
        WHERE unique_key = ANY(%(keys)s::text[])
          AND state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry')
    """,
    # In the order of their ids, as everybody locks several jobs. The states are those of the unique index.
    lock_replaced="""
        SELECT id FROM {s}.jobs
        WHERE unique_key = ANY(%(keys)s::text[])
          AND state IN ('enqueued', 'scheduled', 'processing', 'awaiting_retry') AND state <> 'processing'
        ORDER BY id FOR UPDATE
    """,
    replace=f"""
        WITH finished AS (
            UPDATE {{s}}.jobs
            SET state = 'deleted', reason = %(reason)s, finished_at = now(),
                expires_at = now() + %(ttl)s::interval, run_at = NULL
            WHERE id = %(id)s AND state IN ('enqueued', 'scheduled', 'awaiting_retry')
            RETURNING id
        )
        SELECT {COUNT}
    """,
    hold_key="""
        INSERT INTO {s}.locks AS held (resource, owner, expires_at)
        -- now() would be when the transaction began, which may be the caller's and an old one.
        VALUES (%(resource)s, %(owner)s, clock_timestamp() + %(ttl)s::interval)
        ON CONFLICT (resource) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at
        -- A row that does not meet this is locked all the same.
        WHERE held.owner = excluded.owner OR held.expires_at <= clock_timestamp()
    """,
    key_holder="SELECT owner FROM {s}.locks WHERE resource = %(resource)s",
    hand_key="UPDATE {s}.locks SET owner = %(to)s WHERE resource = %(resource)s AND owner = %(owner)s",
    free_key="DELETE FROM {s}.locks WHERE resource = %(resource)s AND owner = %(owner)s",
    get=f"SELECT {JOB} FROM {{s}}.jobs AS j WHERE j.id = %(id)s",
    delete=f"""
        WITH deleted AS (
            UPDATE {{s}}.jobs AS j
            SET state = 'deleted', reason = %(reason)s, finished_at = now(),
                expires_at = now() + %(ttl)s::interval, run_at = NULL
            WHERE j.id = %(id)s
              AND j.state IN ('enqueued', 'scheduled', 'awaiting_retry', 'succeeded', 'failed')
            RETURNING {JOB}
        )
        SELECT *, {told_to_waiters("ARRAY[deleted.id]")} AS told_waiters FROM deleted
    """,
    retry=f"""
        WITH retried AS (
            UPDATE {{s}}.jobs AS j
            SET state = 'enqueued', enqueued_at = now(), failures = 0, crashes = 0, expires_at = NULL,
                finished_at = NULL, run_at = NULL, reason = NULL, cancel_reason = NULL
            WHERE j.id = %(id)s AND j.state = 'failed'
            RETURNING {JOB}
        )
        SELECT *, pg_notify(%(channel)s, '{Told.ONE_JOB}') AS told FROM retried
    """,
    stranded=f"""
        SELECT {RELEASED} FROM {{s}}.jobs AS j
        WHERE j.state = 'processing' AND coalesce(j.started_at, j.created_at) < %(stale_before)s
          AND (j.server_id IS NULL OR j.server_id <> ALL(%(spared)s::text[]))
        ORDER BY j.started_at, j.id
        -- SKIP LOCKED: a claim that is just being finished is not stranded.
        FOR UPDATE SKIP LOCKED
    """,
    next_due="""
        SELECT run_at AS due_at, now() AS now FROM {s}.jobs
        WHERE state IN ('scheduled', 'awaiting_retry') AND id <> ALL(%(spared)s::text[])
        ORDER BY run_at, id LIMIT 1
    """,
    promote=_promote(_DUE_FIRST),
    due=_DUE_FIRST,
    promote_these=_promote(f"SELECT id FROM {{s}}.jobs WHERE {_IS_DUE} AND id = ANY(%(ids)s::text[])"),
    any_from_the_future=None,
    hasten_retries=counted(f"UPDATE {{s}}.jobs SET {_SOONER} WHERE {_EARLY_RETRY} RETURNING id"),
    hasten_spread=counted(f"UPDATE {{s}}.jobs SET {_SOONER} WHERE {_EARLY_FIRING} RETURNING id"),
    state="SELECT state FROM {s}.jobs WHERE id = %(id)s",
    # FOR UPDATE: a claim or an end of the job comes wholly before or after what follows.
    lock_state="SELECT state FROM {s}.jobs WHERE id = %(id)s FOR UPDATE",
    request_cancel=counted("""
        UPDATE {s}.jobs SET cancel_reason = coalesce(cancel_reason, %(reason)s)
        WHERE id = %(id)s AND state = 'processing' RETURNING id
    """),
    cancel_requests="""
        SELECT id, claim_seq, method, failures, crashes, worker_id, cancel_reason FROM {s}.jobs
        WHERE state = 'processing' AND server_id = %(server_id)s AND cancel_reason IS NOT NULL
        ORDER BY started_at, id
    """,
    # Locked in the order of their ids, as by whoever ends several. Nobody is told: nothing waits for it.
    note_progress="""
        WITH noted AS (
            UPDATE {s}.jobs AS j SET progress = said.progress
            FROM unnest(%(id)s::text[], %(claim_seq)s::integer[], %(progress)s::text[])
                AS said (id, claim_seq, progress)
            WHERE j.id = ANY(%(id)s::text[]) AND j.id = said.id
              AND CASE WHEN j.state = 'processing' THEN j.claim_seq END = said.claim_seq
            RETURNING j.id
        )
        SELECT count(*) AS count FROM noted
    """,
    progress="""
        SELECT id, claim_seq, progress FROM {s}.jobs
        WHERE id = ANY(%(ids)s::text[]) AND progress IS NOT NULL
    """,
    any_expired=None,
    delete_expired=_delete_expired(_EXPIRED_FIRST),
    expired=_EXPIRED_FIRST,
    delete_these=_delete_expired(
        f"SELECT j.id FROM {{s}}.jobs AS j WHERE {_EXPIRED} AND j.id = ANY(%(ids)s::text[])"
    ),
)
