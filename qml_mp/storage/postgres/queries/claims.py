"""Every process: claims and their ends."""

from __future__ import annotations

from typing import Final

from qml_mp.core.job import MAX_METHOD_CHARS
from qml_mp.storage.postgres.queries.common import ANY_LIMIT, CAN_BE_SENT, CLAIM, JOB, METHOD_NAME, RELEASED
from qml_mp.storage.postgres.queries.limits import WITHIN_BOUNDS, WITHOUT_OTHER_LIMITS
from qml_mp.storage.postgres.queries.telling import COUNT, OF_A_PLACE, OF_AN_OUTCOME
from qml_mp.storage.queries import UNDER_LIMITS, ChoiceQueries, ClaimQueries, TakeQueries
from qml_mp.storage.rows import ATTEMPT_COLUMNS


def _from(of: str, *, start: str, same: str, always: str) -> ChoiceQueries:
    """The choice of claims. `of` are the columns that part the jobs, `same` compares them with those of `h`.

    A queue can be full of methods that this worker does not know, whose backlog must cost nothing. So
    first the head of each method, by steps from one to the next in an index that has the method before the
    order; then the best of those that are known. Only then rows are locked.
    """
    entry = f"""
        SELECT {of}{METHOD_NAME} AS name, j.priority, j.created_at, j.id FROM {{s}}.jobs AS j
        WHERE j.state = 'enqueued' AND {always} -- always true; see the index
    """
    first = f"ORDER BY {METHOD_NAME}, {_BEST} LIMIT 1"
    of_method = f"""
        FROM {{s}}.jobs AS j WHERE j.state = 'enqueued' AND {always} {same} AND {METHOD_NAME} = h.name
    """
    heads = f"""
        WITH RECURSIVE head AS (
            {start.format(entry=entry, order=first)}
            UNION ALL
            SELECT next.* FROM head AS h
            CROSS JOIN LATERAL ({entry} {same} AND {METHOD_NAME} > h.name {first}) AS next
        ),
    """
    one = f"""
        {heads}
        -- MATERIALIZED: the candidate is looked for once, and never again per row of a join.
        candidate AS MATERIALIZED (
            {_walk(f"SELECT j.id {of_method} ORDER BY {_BEST} LIMIT 1 {_LOCK}", limit="1")}
        )
    """
    several = heads + _several(of_method)
    return ChoiceQueries(one=_take(one), several=_take(several))


def _take(candidates: str, *, kinds: str = "(SELECT count(*) FROM head)") -> TakeQueries:
    return TakeQueries(
        best=f"{candidates} SELECT id FROM candidate",
        claim=candidates + _CLAIM,
        exchange=candidates + _EXCHANGE.replace("[kinds]", kinds),
    )


def _take_of_kinds() -> TakeQueries:
    """As from several queues, with the heads given."""
    heads = """
        WITH head AS MATERIALIZED (
            SELECT * FROM unnest(%(kind_queues)s::text[], %(kind_methods)s::text[],
                                 %(kind_priorities)s::integer[], %(kind_times)s::timestamptz[],
                                 %(kind_ids)s::text[]) AS given (queue, name, priority, created_at, id)
        ),
    """
    of_method = f"""
        FROM {{s}}.jobs AS j WHERE j.state = 'enqueued' AND j.queue <> '' AND j.queue = h.queue
          AND {METHOD_NAME} = h.name COLLATE "C" AND {WITHIN_BOUNDS}
    """
    candidates = heads + _several(of_method)
    claim = _CLAIM.replace(_WITHOUT_LIMITS, WITHOUT_OTHER_LIMITS)
    return TakeQueries(
        best=f"{candidates} SELECT id FROM candidate",
        claim=candidates + claim.replace("now()", "coalesce(%(began_at)s::timestamptz, now())"),
        exchange=None,
    )


_BEST: Final = "j.priority DESC, j.created_at, j.id"
"""Highest priority, then oldest."""

_KNOWN_HEADS: Final = """
    SELECT * FROM head WHERE %(methods)s::text[] IS NULL OR name = ANY(%(methods)s::text[])
    ORDER BY priority DESC, created_at, id
"""


def _best(columns: str, of_method: str, *, limit: str, lock: str = "") -> str:
    """The best of the method of `h`, that head first. The index has this order, so a walk ends as soon as it
    has enough. It begins at the head, as before it there may stand entries of all the jobs that were claimed
    since the last vacuum."""
    return f"""
        SELECT best.* FROM (
            SELECT same.* FROM (
                SELECT {columns} {of_method}
                  AND j.priority = h.priority AND (j.created_at, j.id) >= (h.created_at, h.id)
                ORDER BY j.created_at, j.id LIMIT {limit} {lock}
            ) AS same
            UNION ALL
            SELECT lower.* FROM (
                SELECT {columns} {of_method} AND j.priority < h.priority
                ORDER BY {_BEST} LIMIT {limit} {lock}
            ) AS lower
        ) AS best LIMIT {limit}
    """


def _several(of_method: str) -> str:
    """How many of each method are among the best, read without a lock, so that no more rows are locked than
    claimed; then so many of each."""
    order = "j.priority, j.created_at, j.id"
    of_any = _best("j.id", of_method, limit="%(limit)s", lock=_LOCK)
    return f"""
        share AS MATERIALIZED (
            SELECT (known).*, count(*) AS jobs
            FROM (
                -- Of other heads than the best so many, no job is among the best so many.
                SELECT h AS known FROM ({_KNOWN_HEADS} LIMIT %(limit)s) AS h
                CROSS JOIN LATERAL ({_best(order, of_method, limit="%(limit)s")}) AS j
                ORDER BY {_BEST} LIMIT %(limit)s
            ) AS best
            GROUP BY known
        ),
        free AS MATERIALIZED (
            SELECT free.id FROM share AS h
            CROSS JOIN LATERAL ({_best("j.id", of_method, limit="h.jobs", lock=_LOCK)}) AS free
        ),
        candidate AS MATERIALIZED (
            SELECT id FROM free
            UNION ALL
            -- Others were taking all of those: whatever else is free.
            ({_walk(of_any, limit="%(limit)s", only_if="NOT EXISTS (SELECT FROM free)")})
        )
    """


_LOCK: Final = "FOR UPDATE SKIP LOCKED"
"""What another worker is just taking is passed over and not waited for."""


def _walk(free: str, *, limit: str, only_if: str = "true") -> str:
    """From head to head, taking what is `free` of each. As they are sorted in a subquery, it ends with the
    first that has enough behind it.

    While others are taking the best of a method, its next one can come before the best of another.
    """
    return f"""
        SELECT free.id
        FROM ({_KNOWN_HEADS}) AS h
        CROSS JOIN LATERAL ({free}) AS free
        WHERE {only_if}
        ORDER BY h.priority DESC, h.created_at, h.id
        LIMIT {limit}
    """


_HAND_OUT: Final = """
    UPDATE {s}.jobs AS j
    SET state = 'processing', claim_seq = j.claim_seq + 1, started_at = now(), worker_id = %(worker_id)s,
        server_id = %(server_id)s, reason = NULL
"""
_WITHOUT_LIMITS: Final = f"NOT {ANY_LIMIT}"
"""Asked once for a statement, before it looks for anything: what limits hold back is claimed by another
one."""
_CLAIMED: Final = f"""
    , owner AS MATERIALIZED (
        -- KEY SHARE: who removes the row or raises its epoch waits for a claim that is being made, and none
        -- is made afterwards: who has waited for them reads the row's newest version.
        -- Only when there is something to claim, because locking writes.
        SELECT FROM {{s}}.workers
        WHERE id = %(worker_id)s AND epoch = %(epoch)s AND EXISTS (SELECT FROM candidate) FOR KEY SHARE
    ), claimed AS (
        {_HAND_OUT}
        -- No guard on the state: the candidate is locked, and was seen Enqueued under that lock. An array, as
        -- a join may read all jobs, by a plan that was made when they were few.
        WHERE {_WITHOUT_LIMITS} AND {CAN_BE_SENT} AND j.id = ANY(ARRAY(SELECT id FROM candidate))
          AND (NOT %(registered)s OR EXISTS (SELECT FROM owner))
        RETURNING {CLAIM}
    )
"""
_CLAIM: Final = f"""
    {_CLAIMED}
    SELECT claimed.*, asked.*
    FROM (SELECT CASE WHEN {ANY_LIMIT} THEN {UNDER_LIMITS} END AS kinds) AS asked
    LEFT JOIN claimed ON true
"""

# The guard of every write about a claim: id, claim_seq and Processing; and the worker, which is compared here
# for a success, for the others once their rows are locked. As a CASE, because a planner whose statistics are
# old may otherwise look for the row among all that are Processing.
_CLAIM_HOLDS: Final = "id = %(id)s AND CASE WHEN state = 'processing' THEN claim_seq END = %(claim_seq)s"

_SUCCEED: Final = """
    UPDATE {s}.jobs AS j
    SET state = 'succeeded', finished_at = now(), expires_at = now() + %(ttl)s::interval,
        result = done.result, duration_us = done.duration_us, reason = done.reason, run_at = NULL,
        cancel_reason = NULL, worker_id = NULL, server_id = NULL
    FROM unnest(
        %(id)s::text[], %(claim_seq)s::integer[], %(result)s::text[], %(duration_us)s::bigint[],
        %(reason)s::text[], %(held_by)s::text[]
    ) AS done (id, claim_seq, result, duration_us, reason, held_by)
    -- The rows are locked in the order of their ids, whichever side of the join comes first: those of the
    -- arrays come in that order, and so does what an index gives for a list.
    WHERE j.id = ANY(%(id)s::text[]) AND j.id = done.id
      AND CASE WHEN j.state = 'processing' AND j.worker_id = done.held_by THEN j.claim_seq END
          = done.claim_seq
"""
_EXCHANGE: Final = f"""
    {_CLAIMED}, finished AS (
        {_SUCCEED} RETURNING j.id
    )
    -- The outcomes first, as everybody locks claims before the row of their worker.
    SELECT claimed.*, written.*
    FROM (
        SELECT now() AS now, {COUNT},
               -- No column of its own, which each row of the reply would have.
               CASE WHEN {ANY_LIMIT} THEN {UNDER_LIMITS} ELSE [kinds] END AS kinds
    ) AS written
    LEFT JOIN claimed ON true
"""
_PROCESSING: Final = f"SELECT {JOB} FROM {{s}}.jobs AS j WHERE j.state = 'processing'"
_ALL: Final = f"SELECT {RELEASED} FROM {{s}}.jobs AS j WHERE j.state = 'processing'"
_OF_SERVER: Final = f"{_ALL} AND j.server_id = %(server_id)s"

_BEHIND: Final = f"""
    WITH candidate AS MATERIALIZED (
        SELECT j.id FROM {{s}}.jobs AS j
        WHERE j.state = 'enqueued' AND [where]
          AND {METHOD_NAME} = left(%(after_method)s, {MAX_METHOD_CHARS + 1}) COLLATE "C"
          AND j.priority = %(after_priority)s AND (j.created_at, j.id) > (%(after_at)s, %(after_id)s)
        ORDER BY j.created_at, j.id LIMIT %(limit)s {_LOCK}
    )
"""
_ITS_ATTEMPT: Final = "FROM {s}.attempts AS a WHERE a.job_id = j.id AND a.claim_seq = j.claim_seq"

CLAIMS: Final = ClaimQueries(
    from_all=_from("", start="({entry} {order})", same="", always="j.id <> ''"),
    # Beside the next one, because its plan is kept and not made anew.
    from_one=_from(
        "j.queue, ",
        start="({entry} AND j.queue = %(queue)s {order})",
        same="AND j.queue = h.queue",
        always="j.queue <> ''",
    ),
    from_several=_from(
        "j.queue, ",
        start="SELECT first.* FROM unnest(%(queues)s::text[]) AS served (queue) "
        "CROSS JOIN LATERAL ({entry} AND j.queue = served.queue {order}) AS first",
        same="AND j.queue = h.queue",
        always="j.queue <> ''",
    ),
    behind=_take(_BEHIND.replace("[where]", "j.queue <> '' AND j.queue = %(after_queue)s"), kinds="1"),
    behind_in_all=_take(_BEHIND.replace("[where]", "j.id <> ''"), kinds="1"),
    of_kinds=_take_of_kinds(),
    claim_this=f"{_HAND_OUT} WHERE j.id = %(id)s",
    fail_unclaimable="""
        UPDATE {s}.jobs
        SET state = 'failed', finished_at = now(), expires_at = now() + %(ttl)s::interval,
            last_error_type = %(type)s, last_error_message = %(message)s, last_error_traceback = NULL,
            last_error_key = %(key)s
        WHERE id = %(id)s
    """,
    all=f"{_ALL} ORDER BY j.started_at, j.id",
    of_worker=f"{_ALL} AND j.worker_id = %(worker_id)s ORDER BY j.started_at, j.id",
    whole_of_worker=f"{_PROCESSING} AND j.worker_id = %(worker_id)s ORDER BY j.started_at, j.id",
    of_server=f"{_OF_SERVER} ORDER BY j.started_at, j.id",
    # FOR UPDATE waits for a finish that is under way; the claim is then finished and not released.
    lock_of_server=f"{_OF_SERVER} ORDER BY j.id FOR UPDATE",
    # FOR UPDATE: a cancel after this read waits, and finds the job not running. The state as in `bulk.retry`.
    lock="""
        SELECT id, claim_seq, worker_id, cancel_reason FROM {s}.jobs
        WHERE id = ANY(%(ids)s::text[]) AND state || '' = 'processing' ORDER BY id FOR UPDATE
    """,
    succeed=f"WITH finished AS ({_SUCCEED} RETURNING j.id) SELECT now() AS now, {COUNT}",
    succeed_and_tell=f"""
        WITH finished AS ({_SUCCEED} RETURNING j.id)
        SELECT now() AS now, {COUNT}, {OF_A_PLACE}
    """,
    finish=f"""
        WITH finished AS (
            UPDATE {{s}}.jobs
            SET state = %(state)s,
                enqueued_at = CASE WHEN %(waits)s AND NOT %(keeps_age)s THEN now() ELSE enqueued_at END,
                run_at = now() + %(delay)s::interval,
                finished_at = CASE WHEN %(waits)s THEN NULL ELSE now() END,
                expires_at = now() + %(ttl)s::interval,
                -- Capped: a row that another program has filled to the brim must still be able to end.
                failures = least(failures, 2147483647 - %(failures)s) + %(failures)s,
                crashes = least(crashes, 2147483647 - %(crashes)s) + %(crashes)s,
                result = NULL,
                duration_us = NULL,
                last_error_type = CASE WHEN %(failed)s THEN %(error_type)s ELSE last_error_type END,
                last_error_message = CASE WHEN %(failed)s THEN %(error_message)s ELSE last_error_message END,
                last_error_traceback =
                    CASE WHEN %(failed)s THEN %(error_traceback)s ELSE last_error_traceback END,
                last_error_key = CASE WHEN %(failed)s THEN %(error_key)s ELSE last_error_key END,
                reason = %(reason)s, cancel_reason = NULL, worker_id = NULL, server_id = NULL
            WHERE {_CLAIM_HOLDS}
            RETURNING id
        )
        SELECT now() AS now, {OF_AN_OUTCOME} FROM finished
    """,
    add_attempt=f"""
        INSERT INTO {{s}}.attempts (job_id, {ATTEMPT_COLUMNS})
        SELECT j.id, j.claim_seq, %(kind)s, %(worker)s,
               -- The pid of a worker that is alive is that of its row.
               coalesce(%(pid)s::integer, (SELECT w.pid FROM {{s}}.workers AS w WHERE w.id = %(worker)s)),
               coalesce(j.started_at, now()), now(), %(error_type)s, %(error_message)s, %(error_traceback)s,
               %(signal)s, %(exit_code)s, %(peak_rss_bytes)s, %(cpu_s)s
        FROM {{s}}.jobs AS j
        WHERE j.id = %(id)s AND j.claim_seq = %(claim_seq)s
        -- Only a row that another program has put there can be in the way; the outcome does not depend on it.
        ON CONFLICT (job_id, claim_seq) DO NOTHING
    """,
    read_back=f"""
        SELECT {JOB},
               (SELECT a.kind {_ITS_ATTEMPT}) AS recorded, (SELECT a.worker {_ITS_ATTEMPT}) AS recorded_of
        FROM {{s}}.jobs AS j WHERE j.id = ANY(%(ids)s::text[])
    """,
)
