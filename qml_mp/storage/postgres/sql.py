"""Every process: the SQL of jobs and claims. `{s}` stands for the quoted schema, `%(…)s` for bound values.

Time is the server's: `now()`, the start of the transaction. Isolation is READ COMMITTED: a row that
somebody changed meanwhile is judged again by its newest version, which is what the guards rely on.
`channel` is where listening supervisors are told of a commit. NOTIFY takes part in the transaction,
and each statement sends it at most once, whatever the number of its rows.
"""

from __future__ import annotations

from qml_mp.core.job import MAX_METHOD_CHARS

TELL_IF_ANY = "CASE WHEN count(*) > 0 THEN pg_notify(%(channel)s, '') END AS told"

JOB_COLUMNS = (
    "j.id, j.method, j.queue, j.priority, j.state, j.max_retries, j.max_crashes, j.timeout_us, j.unique_key, "
    "j.created_at, j.enqueued_at, j.run_at, j.started_at, j.finished_at, j.expires_at, j.duration_us, "
    "j.worker_id, j.server_id, j.claim_seq, j.failures, j.crashes, j.last_error_type, j.last_error_message, "
    "j.last_error_traceback, j.reason, j.cancel_reason, j.payload, j.metadata, j.result"
)

# Single jobs

LOCK_STATE = "SELECT state FROM {s}.jobs WHERE id = %(id)s FOR UPDATE"
"""A job's state, which nobody changes until the transaction ends."""

CANCEL_WAITING = """
UPDATE {s}.jobs
SET state = 'deleted', reason = %(reason)s, finished_at = now(), expires_at = now() + %(ttl)s::interval,
    run_at = NULL
WHERE id = %(id)s AND state IN ('enqueued', 'scheduled', 'awaiting_retry')
"""
"""Make Deleted a job that waits to run."""

REQUEST_CANCEL = """
WITH asked AS (
    UPDATE {s}.jobs SET cancel_reason = coalesce(cancel_reason, %(reason)s)
    WHERE id = %(id)s AND state = 'processing' RETURNING id
)
SELECT """ + TELL_IF_ANY + """, count(*) AS count FROM asked
"""  # fmt: skip
"""Leave word for the supervisor of a running job, and wake it; the first reason given stays."""

CANCEL_REQUESTS = """
SELECT id, claim_seq, worker_id, cancel_reason FROM {s}.jobs
WHERE state = 'processing' AND server_id = %(server_id)s AND cancel_reason IS NOT NULL
ORDER BY started_at, id
"""
"""What a supervisor has been asked to cancel."""

# The claim

_CLAIM = (
    """, owner AS MATERIALIZED (
    -- KEY SHARE: who removes the row or raises its epoch waits for a claim that is being made, and none is
    -- made afterwards: who has waited for them reads the row's newest version.
    -- Only when there is something to claim, because locking writes.
    SELECT FROM {s}.workers
    WHERE id = %(worker_id)s AND epoch = %(epoch)s AND EXISTS (SELECT FROM candidate) FOR KEY SHARE
)
UPDATE {s}.jobs AS j
SET state = 'processing', claim_seq = j.claim_seq + 1, started_at = now(), worker_id = %(worker_id)s,
    server_id = %(server_id)s, reason = NULL
FROM candidate AS c
-- No guard on the state: the candidate is locked, and was seen Enqueued under that lock.
WHERE j.id = c.id AND (NOT %(registered)s OR EXISTS (SELECT FROM owner))
RETURNING """
    + JOB_COLUMNS
)

# How the claim tells methods apart. Cut, because an index takes no text of any length; longer than any name
# that a program can register, so that those are whole.
METHOD_NAME = f'left(j.method, {MAX_METHOD_CHARS + 1}) COLLATE "C"'


def _best(of: str, *, start: str, same: str, always: str) -> str:
    """The choice of a claim. `of` are the columns that part the jobs, `same` compares them with those of `h`.

    A queue can be full of methods that this worker does not know, whose backlog must cost nothing. So
    first the head of each method, by steps from one to the next in an index that has the method before the
    order; then the best head of those that are known. Only then a row is locked.
    """
    entry = f"""
        SELECT {of}{METHOD_NAME} AS name, j.priority, j.created_at, j.id FROM {{s}}.jobs AS j
        WHERE j.state = 'enqueued' AND {always} -- always true; see the index
    """
    order = f"ORDER BY {METHOD_NAME}, j.priority DESC, j.created_at, j.id LIMIT 1"
    return f"""
WITH RECURSIVE head AS (
    {start.format(entry=entry, order=order)}
    UNION ALL
    SELECT next.* FROM head AS h
    CROSS JOIN LATERAL ({entry} {same} AND {METHOD_NAME} > h.name {order}) AS next
),
-- MATERIALIZED: the candidate is looked for once, and never again per row of a join.
candidate AS MATERIALIZED (
    SELECT free.id
    FROM (
        SELECT * FROM head WHERE %(methods)s::text[] IS NULL OR name = ANY(%(methods)s::text[])
        ORDER BY priority DESC, created_at, id
    ) AS h
    CROSS JOIN LATERAL (
        SELECT j.id FROM {{s}}.jobs AS j
        WHERE j.state = 'enqueued' AND {always} {same} AND {METHOD_NAME} = h.name
        -- Highest priority, then oldest; the index has this order, so the walk ends at the first free row.
        ORDER BY j.priority DESC, j.created_at, j.id
        -- SKIP LOCKED: what another worker is just taking is passed over and not waited for.
        LIMIT 1 FOR UPDATE SKIP LOCKED
    ) AS free
    -- As the subquery is sorted, so the walk ends with the first head that has a free row behind it. While
    -- others are taking the best of a method, its next one can come before the best of another method.
    ORDER BY h.priority DESC, h.created_at, h.id
    LIMIT 1
)"""


_BEST_OF_ALL = _best("", start="({entry} {order})", same="", always="j.id <> ''")

_BEST_OF_ONE = _best(
    "j.queue, ",
    start="({entry} AND j.queue = %(queue)s {order})",
    same="AND j.queue = h.queue",
    always="j.queue <> ''",
)

_BEST_OF_SEVERAL = _best(
    "j.queue, ",
    start="SELECT first.* FROM unnest(%(queues)s::text[]) AS served (queue) "
    "CROSS JOIN LATERAL ({entry} AND j.queue = served.queue {order}) AS first",
    same="AND j.queue = h.queue",
    always="j.queue <> ''",
)

CLAIM_FROM_ONE = _BEST_OF_ONE + _CLAIM
"""Claim the best job of one queue. Beside the next one, because its plan is kept and not made anew."""

CLAIM_FROM_ALL = _BEST_OF_ALL + _CLAIM
"""Claim the best job of all queues."""

CLAIM_FROM_SEVERAL = _BEST_OF_SEVERAL + _CLAIM
"""Claim the best job of several queues."""

CANDIDATE_OF = {
    best + _CLAIM: best + " SELECT id FROM candidate"
    for best in (_BEST_OF_ONE, _BEST_OF_ALL, _BEST_OF_SEVERAL)
}
"""By the statement that claims: the one that locks the same job and only tells it."""

CLAIM_CANDIDATE = """
UPDATE {s}.jobs
SET state = 'processing', claim_seq = claim_seq + 1, started_at = now(), worker_id = %(worker_id)s,
    server_id = %(server_id)s, reason = NULL
WHERE id = %(id)s
"""
"""Try whether a row that is locked can be claimed at all; rolled back either way."""

FAIL_CANDIDATE = """
UPDATE {s}.jobs
SET state = 'failed', finished_at = now(), expires_at = now() + %(ttl)s::interval, last_error_type = %(type)s,
    last_error_message = %(message)s, last_error_traceback = NULL
WHERE id = %(id)s
"""
"""Take out of the queue a locked row that cannot be claimed."""

CLAIMS_OF_WORKER = (
    "SELECT "
    + JOB_COLUMNS
    + " FROM {s}.jobs AS j WHERE j.state = 'processing' AND j.worker_id = %(worker_id)s"
    " ORDER BY j.started_at, j.id"
)
CLAIMS_OF_SERVER = (
    "SELECT "
    + JOB_COLUMNS
    + " FROM {s}.jobs AS j WHERE j.state = 'processing' AND j.server_id = %(server_id)s"
    " ORDER BY j.started_at, j.id"
)
CLAIMS = (
    "SELECT " + JOB_COLUMNS + " FROM {s}.jobs AS j WHERE j.state = 'processing' ORDER BY j.started_at, j.id"
)
"""The claims there are, oldest first."""

# The end of a claim

# The guard of every write about a claim: id, claim_seq and Processing. As a CASE, because a planner whose
# statistics are old may otherwise look for the row among all that are Processing.
_CLAIM_HOLDS = "id = %(id)s AND CASE WHEN state = 'processing' THEN claim_seq END = %(claim_seq)s"

LOCK_CLAIM = (
    "SELECT cancel_reason FROM {s}.jobs WHERE "
    + _CLAIM_HOLDS
    + """
-- FOR UPDATE: a cancel that comes after this read waits, and then finds the job no longer running.
FOR UPDATE
"""
)
"""Whether the claim still holds, and whether somebody wants the job cancelled."""

FINISH = (
    """
WITH finished AS (
    UPDATE {s}.jobs
    SET state = %(state)s,
        enqueued_at = CASE WHEN %(waits)s THEN now() ELSE enqueued_at END,
        run_at = now() + %(delay)s::interval,
        finished_at = CASE WHEN %(waits)s THEN NULL ELSE now() END,
        expires_at = now() + %(ttl)s::interval,
        -- Capped: a row that another program has filled to the brim must still be able to end.
        failures = least(failures, 2147483647 - %(failures)s) + %(failures)s,
        crashes = least(crashes, 2147483647 - %(crashes)s) + %(crashes)s,
        result = %(result)s,
        duration_us = %(duration_us)s,
        last_error_type = CASE WHEN %(failed)s THEN %(error_type)s ELSE last_error_type END,
        last_error_message = CASE WHEN %(failed)s THEN %(error_message)s ELSE last_error_message END,
        last_error_traceback = CASE WHEN %(failed)s THEN %(error_traceback)s ELSE last_error_traceback END,
        reason = %(reason)s, cancel_reason = NULL, worker_id = NULL, server_id = NULL
    WHERE """
    + _CLAIM_HOLDS
    + """
    RETURNING id
)
SELECT count(*) AS count, now() AS now,
       CASE WHEN count(*) > 0 AND %(waits)s THEN pg_notify(%(channel)s, '') END AS told
FROM finished
"""
)
"""Write what came of a claim, if it still holds; a job that will run again is announced."""

INSERT_ATTEMPT = """
INSERT INTO {s}.attempts (job_id, claim_seq, kind, worker, pid, started_at, ended_at, error_type,
                          error_message, error_traceback, signal, exit_code, peak_rss_bytes, cpu_s)
SELECT j.id, j.claim_seq, %(kind)s, %(worker)s,
       coalesce(%(pid)s::integer, (SELECT w.pid FROM {s}.workers AS w WHERE w.id = %(worker)s)),
       coalesce(j.started_at, now()), now(), %(error_type)s, %(error_message)s, %(error_traceback)s,
       %(signal)s, %(exit_code)s, %(peak_rss_bytes)s, %(cpu_s)s
FROM {s}.jobs AS j
WHERE j.id = %(id)s AND j.claim_seq = %(claim_seq)s
-- Only a row that another program has put there can be in the way; the outcome does not depend on it.
ON CONFLICT (job_id, claim_seq) DO NOTHING
"""
"""Add an attempt to the history; runs in the transaction that finishes the claim."""

READ_BACK = (
    """
SELECT """
    + JOB_COLUMNS
    + """, j.duration_us IS NOT NULL AS succeeded,
       (SELECT a.kind FROM {s}.attempts AS a WHERE a.job_id = j.id AND a.claim_seq = j.claim_seq) AS recorded
FROM {s}.jobs AS j WHERE j.id = %(id)s
"""
)
"""What became of a claim that was gone when it was to be finished."""

LOCK_STRANDED = (
    "SELECT "
    + JOB_COLUMNS
    + """ FROM {s}.jobs AS j
WHERE j.state = 'processing' AND coalesce(j.started_at, j.created_at) < %(stale_before)s
  AND (j.server_id IS NULL OR j.server_id <> ALL(%(spared)s::text[]))
ORDER BY j.started_at, j.id
-- SKIP LOCKED: a claim that is just being finished is not stranded.
FOR UPDATE SKIP LOCKED
"""
)
"""Old claims of servers that are not known to be alive, to be released."""

LOCK_CLAIMS_OF_SERVER = (
    "SELECT "
    + JOB_COLUMNS
    + """ FROM {s}.jobs AS j
WHERE j.state = 'processing' AND j.server_id = %(server_id)s
ORDER BY j.started_at, j.id
-- Waits for a finish that is under way; the claim is then finished and not released.
FOR UPDATE
"""
)
"""All claims of one server, to be released."""

# Time

PROMOTE_DUE = (
    """
WITH due AS MATERIALIZED (
    SELECT id FROM {s}.jobs
    WHERE state IN ('scheduled', 'awaiting_retry') AND run_at <= now()
    ORDER BY run_at, id
    -- SKIP LOCKED: another scheduler promotes those rows, or a person is just changing them.
    LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), promoted AS (
    UPDATE {s}.jobs AS j SET state = 'enqueued', enqueued_at = now(), run_at = NULL, reason = NULL
    FROM due WHERE j.id = due.id
    RETURNING j.id
)
SELECT count(*) AS count, """
    + TELL_IF_ANY
    + " FROM promoted"
)
"""Make Enqueued what is due, longest due first."""

HASTEN_RETRIES = """
WITH hastened AS (
    UPDATE {s}.jobs SET run_at = run_at - (enqueued_at - clock_timestamp()), enqueued_at = clock_timestamp()
    -- clock_timestamp(), because an attempt may have ended since this transaction began.
    WHERE state = 'awaiting_retry' AND enqueued_at > clock_timestamp() RETURNING id
)
SELECT count(*) AS count, """ + TELL_IF_ANY + """ FROM hastened
"""  # fmt: skip
"""After the clock was set back: what ended in the future is due after its delay, counted from now."""

NEXT_DUE = """
SELECT greatest(run_at - now(), interval '0') AS next_due_in FROM {s}.jobs
WHERE state IN ('scheduled', 'awaiting_retry')
ORDER BY run_at, id LIMIT 1
"""
"""How long until the next waiting job is due; no row when none waits."""

DELETE_EXPIRED_JOBS = """
DELETE FROM {s}.jobs WHERE id IN (
    SELECT id FROM {s}.jobs
    WHERE state IN ('succeeded', 'failed', 'deleted') AND expires_at <= now()
    -- SKIP LOCKED: a job that a person is just retrying is not deleted under their hands.
    ORDER BY expires_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
) RETURNING id
"""
"""Delete ended jobs whose time is over, their attempts with them; the foreign key sees to that."""
