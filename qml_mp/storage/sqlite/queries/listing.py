"""Every process: jobs by pages."""

from __future__ import annotations

from typing import Final

from qml_mp.core.state import StateName
from qml_mp.storage.job_rows import JOB_COLUMNS
from qml_mp.storage.listing_queries import AccessPath, ListingQueries, Order
from qml_mp.storage.sqlite.queries.common import ENDED, NEXT_METHOD, NEXT_PRIORITY, NEXT_QUEUE, asked_for
from qml_mp.storage.values import JobFilter

_INDEX_OF: Final = {
    StateName.ENQUEUED: "qml_jobs_enqueued",
    StateName.SCHEDULED: "qml_jobs_later",
    StateName.PROCESSING: "qml_jobs_processing",
    StateName.AWAITING_RETRY: "qml_jobs_later",
    StateName.SUCCEEDED: "qml_jobs_ended",
    StateName.FAILED: "qml_jobs_ended",
    StateName.DELETED: "qml_jobs_ended",
}
_CONDITION_OF: Final = {
    "qml_jobs_later": "(state = 'scheduled' OR state = 'awaiting_retry')",
    "qml_jobs_failures": "(state = 'failed' OR state = 'awaiting_retry')",
    "qml_jobs_ended": ENDED,
}


def table_of(state: StateName, *, by_kind: bool) -> str:
    """The jobs in the state, up to WHERE and what their index has for its condition."""
    index = "qml_jobs_failures" if by_kind else _INDEX_OF[state]
    return f"qml_jobs INDEXED BY {index} WHERE {_CONDITION_OF.get(index, 'true')} AND state = '{state}'"


_RANGE: Final = """
    (created_at, id) > (:older_at, :older_id) AND (created_at, id) < (:newer_at, :newer_id)
"""
_PART: Final = """
    SELECT * FROM (
        SELECT rowid AS place, created_at, id FROM {table} AND {range} AND {filter}
        ORDER BY created_at {order}, id {order} LIMIT {limit})
"""
# Each queue, method and priority with what it gives.
_GROUPS: Final = """
    SELECT queues.value AS queue, methods.value AS method, priorities.value AS priority
    FROM json_each(:group_queues) AS queues
    JOIN json_each(:group_methods) AS methods ON methods.key = queues.key
    JOIN json_each(:group_priorities) AS priorities ON priorities.key = queues.key
"""
_OF_GROUPS: Final = f"""
    SELECT job.rowid AS place, job.created_at, job.id
    FROM ({_GROUPS}) AS part CROSS JOIN qml_jobs AS job ON job.rowid IN (
        SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_enqueued
        WHERE state = 'enqueued' AND queue = part.queue AND method = part.method
          AND priority = part.priority AND {{range}} AND {{filter}}
        ORDER BY created_at {{order}}, id {{order}} LIMIT {{limit}})
"""


def _each_part(
    where: JobFilter, order: Order, path: AccessPath, *, condition: str, limit: str, of_group: str
) -> str:
    by_kind = where.kind is not None and path.kind_is_rare
    selects = []
    for state in where.each_state():
        in_groups = state is StateName.ENQUEUED and path.groups is not None
        selects.append(
            (_OF_GROUPS if in_groups else _PART).format(
                table=table_of(state, by_kind=by_kind), range=_RANGE, filter=condition, order=order.value,
                limit=of_group if in_groups else limit,
            )
        )  # fmt: skip
    return " UNION ALL ".join(selects)


_LONG: Final = "length({column}) > :brief_chars"
_LEFT_OUT: Final = {"payload": "'null'", "metadata": "'{}'", "result": "NULL"}


def _brief_column(name: str) -> str:
    if name == "last_error_traceback":
        return f"NULL AS {name}"
    if name in _LEFT_OUT:
        return f"iif({_LONG.format(column=name)}, {_LEFT_OUT[name]}, {name}) AS {name}"
    return name


_IS_CUT: Final = " OR ".join(f"COALESCE({_LONG.format(column=name)}, false)" for name in _LEFT_OUT)
_BRIEF: Final = ", ".join(
    (*(_brief_column(name.strip()) for name in JOB_COLUMNS.split(",")), f"{_IS_CUT} AS is_cut")
)


def _page(where: JobFilter, order: Order, path: AccessPath, brief: bool) -> str:
    """Each part gives its first, and the first of those are the page."""
    found = _each_part(where, order, path, condition=asked_for(where), limit=":limit", of_group=":limit")
    in_order = f"ORDER BY created_at {order.value}, id {order.value}"
    return f"""
        SELECT {_BRIEF if brief else JOB_COLUMNS} FROM qml_jobs
        WHERE rowid IN (SELECT place FROM ({found}) {in_order} LIMIT :limit)
        {in_order}
    """


def _edges(where: JobFilter, order: Order, path: AccessPath) -> str:
    return _each_part(
        where, order, path, condition="true", limit="1 OFFSET :skip", of_group="1 OFFSET :skip_of_group"
    )


# created_at is of the clock of who made it, which may be ahead, or behind, and a job may be stored long after
# it was made: one that nothing has happened to yet is there since enqueued_at. One that has been enqueued
# again since (promote leaves a reason, a claim its number, and who fails a job an error) was made before. One
# that came later and was claimed since cannot be told from it.
_MEANT: Final = """
    FROM {table} AND {range} AND :until >= CASE
        WHEN claim_seq = 0 AND reason IS NULL AND last_error_type IS NULL THEN enqueued_at
        ELSE min(created_at, enqueued_at) END
      AND (finished_at IS NULL OR finished_at <= :until) AND {filter}
"""
_RAN_THEN: Final = "AND COALESCE(started_at, created_at) <= :until"
_OF_THE_GROUP: Final = """
    AND queue = json_extract(:group_queues, '$[0]') AND method = json_extract(:group_methods, '$[0]')
    AND priority = json_extract(:group_priorities, '$[0]')
"""


def _meant(state: StateName, where: JobFilter, path: AccessPath, ran_then: bool) -> str:
    table = table_of(state, by_kind=where.kind is not None and path.kind_is_rare)
    group = "" if path.groups is None else _OF_THE_GROUP
    ran = _RAN_THEN if ran_then and state is StateName.PROCESSING else ""
    return _MEANT.format(table=table + group, range=_RANGE, filter=asked_for(where)) + ran


# From one to the next, so that the length of a backlog costs nothing.
_EACH_GROUP: Final = f"""
    part (place, queue, method, priority) AS (
        SELECT * FROM (
            SELECT rowid, queue, method, priority FROM qml_jobs INDEXED BY qml_jobs_enqueued
            WHERE state = 'enqueued' ORDER BY queue, method, priority DESC LIMIT 1)
        UNION ALL
        SELECT next.rowid, next.queue, next.method, next.priority
        FROM part JOIN qml_jobs AS next ON next.rowid = COALESCE({NEXT_PRIORITY}, {NEXT_METHOD}, {NEXT_QUEUE})
        LIMIT :most)
"""
"""Each queue, method and priority of what is Enqueued, as `part`."""

LISTING: Final = ListingQueries(
    enqueued="""
        SELECT count(*) AS jobs FROM (
            SELECT 1 FROM qml_jobs INDEXED BY qml_jobs_enqueued WHERE state = 'enqueued' LIMIT :most)
    """,
    groups=f"WITH RECURSIVE {_EACH_GROUP} SELECT queue, method, priority FROM part",
    of_kind="""
        SELECT count(*) AS jobs FROM (
            SELECT 1 FROM qml_jobs INDEXED BY qml_jobs_failures
            WHERE (state = 'failed' OR state = 'awaiting_retry') AND state IN ('failed', 'awaiting_retry')
              AND last_error_key = :kind
            LIMIT :most)
    """,
    edges=_edges,
    page=_page,
    meant=_meant,
    with_id=f"""
        SELECT {_BRIEF} FROM qml_jobs WHERE id >= :start AND id < :end ORDER BY id DESC LIMIT :limit
    """,
)
