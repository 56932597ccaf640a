"""Every process: jobs by pages."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from qml_mp.core.state import StateName
from qml_mp.storage.job_rows import JOB_COLUMNS
from qml_mp.storage.listing_queries import AccessPath, ListingQueries, Order
from qml_mp.storage.postgres.queries.common import GROUP, JOB, METHOD_NAME, asked_for
from qml_mp.storage.values import JobFilter

_NOT_BEGUN: Final = (StateName.ENQUEUED, StateName.SCHEDULED, StateName.AWAITING_RETRY)


def condition_of(state: StateName) -> str:
    """Of the jobs in the state: what their index has for its condition."""
    return f"state = '{state}'" + (" AND id <> ''" if state in _NOT_BEGUN else "")


_RANGE: Final = """
    (created_at, id) > (%(older_at)s::timestamptz, %(older_id)s)
    AND (created_at, id) < (%(newer_at)s::timestamptz, %(newer_id)s)
"""
_PART: Final = """
    (SELECT j.id, j.created_at FROM {{s}}.jobs AS j WHERE {condition} AND {range} AND {filter}
     ORDER BY created_at {order}, id {order} LIMIT {limit})
"""
_OF_GROUPS: Final = f"""
    (SELECT first.id, first.created_at
     FROM unnest(%(group_queues)s::text[], %(group_methods)s::text[], %(group_priorities)s::int[])
         AS part (queue, method, priority)
     CROSS JOIN LATERAL (
         SELECT j.id, j.created_at FROM {{{{s}}}}.jobs AS j
         WHERE j.state = 'enqueued' AND j.queue <> '' AND j.queue = part.queue
           AND {METHOD_NAME} = part.method AND j.priority = part.priority AND {{range}} AND {{filter}}
         ORDER BY j.created_at {{order}}, j.id {{order}} LIMIT {{limit}}) AS first)
"""


def _each_part(
    where: JobFilter, order: Order, path: AccessPath, *, condition: str, limit: str, of_group: str
) -> str:
    """The state is part of the text, because an index for some states can only be used for a state that the
    planner knows."""
    selects = []
    for state in where.each_state():
        in_groups = state is StateName.ENQUEUED and path.groups is not None
        selects.append(
            (_OF_GROUPS if in_groups else _PART).format(
                condition=condition_of(state), range=_RANGE, filter=condition, order=order.value,
                limit=of_group if in_groups else limit,
            )
        )  # fmt: skip
    return (
        " UNION ALL ".join(selects) or "SELECT NULL::text AS id, NULL::timestamptz AS created_at WHERE false"
    )


_LONG: Final = "octet_length(j.{column}) > %(brief_chars)s"
_LEFT_OUT: Final = {"payload": "'null'", "metadata": "'{{}}'", "result": "NULL"}


def _brief_column(name: str) -> str:
    if name == "last_error_traceback":
        return f"NULL::text AS {name}"
    if name in _LEFT_OUT:
        return f"CASE WHEN {_LONG.format(column=name)} THEN {_LEFT_OUT[name]} ELSE j.{name} END AS {name}"
    return f"j.{name}"


_IS_CUT: Final = " OR ".join(f"coalesce({_LONG.format(column=name)}, false)" for name in _LEFT_OUT)
_BRIEF: Final = ", ".join(
    (*(_brief_column(name.strip()) for name in JOB_COLUMNS.split(",")), f"{_IS_CUT} AS is_cut")
)


def _page(where: JobFilter, order: Order, path: AccessPath, brief: bool) -> str:
    """Each part gives its first, and the first of those are the page."""
    found = _each_part(
        where, order, path, condition=asked_for(where), limit="%(limit)s", of_group="%(limit)s"
    )
    in_order = f"ORDER BY {{table}}.created_at {order.value}, {{table}}.id {order.value}"
    return f"""
        SELECT {_BRIEF if brief else JOB} FROM {{s}}.jobs AS j
        WHERE j.id = ANY(ARRAY(
            SELECT first.id FROM ({found}) AS first {in_order.format(table="first")} LIMIT %(limit)s))
        {in_order.format(table="j")}
    """


def _edges(where: JobFilter, order: Order, path: AccessPath) -> str:
    return _each_part(
        where, order, path, condition="true", limit="1 OFFSET %(skip)s",
        of_group="1 OFFSET %(skip_of_group)s",
    )  # fmt: skip


# created_at is of the clock of who made it, which may be ahead, or behind, and a job may be stored long after
# it was made: one that nothing has happened to yet is there since enqueued_at. One that has been enqueued
# again since (promote leaves a reason, a claim its number, and who fails a job an error) was made before. One
# that came later and was claimed since cannot be told from it.
_MEANT: Final = """
    FROM {{s}}.jobs AS j
    WHERE {condition} AND {range} AND %(until)s >= CASE
        WHEN claim_seq = 0 AND reason IS NULL AND last_error_type IS NULL
        THEN coalesce(enqueued_at, created_at)
        ELSE least(created_at, enqueued_at) END
      AND (finished_at IS NULL OR finished_at <= %(until)s) AND {filter}
"""
_RAN_THEN: Final = "AND coalesce(started_at, created_at) <= %(until)s"
_OF_THE_GROUP: Final = f"""
    j.state = 'enqueued' AND j.queue <> '' AND j.queue = (%(group_queues)s::text[])[1]
    AND {METHOD_NAME} = (%(group_methods)s::text[])[1] AND j.priority = (%(group_priorities)s::int[])[1]
"""


def _meant(state: StateName, where: JobFilter, path: AccessPath, ran_then: bool) -> str:
    condition = condition_of(state) if path.groups is None else _OF_THE_GROUP
    ran = _RAN_THEN if ran_then and state is StateName.PROCESSING else ""
    wanted = asked_for(where)
    if where.kind is not None and not path.kind_is_rare:
        # The index of kinds has no order: all of the kind would be read for each range.
        wanted = f"{asked_for(replace(where, kind=None))} AND last_error_key || '' = %(kind)s"
    return _MEANT.format(condition=condition, range=_RANGE, filter=wanted) + ran


# From one to the next, so that the length of a backlog costs nothing.
_EACH_GROUP: Final = f"""
    part AS (
        ({GROUP} ORDER BY j.queue, {METHOD_NAME}, j.priority DESC LIMIT 1)
        UNION ALL
        SELECT next.queue, next.method, next.priority FROM part
        CROSS JOIN LATERAL (
            SELECT * FROM (
                (SELECT 1 AS place, lower.* FROM (
                    {GROUP} AND j.queue = part.queue AND {METHOD_NAME} = part.method
                      AND j.priority < part.priority
                    ORDER BY j.priority DESC LIMIT 1) AS lower)
                UNION ALL
                (SELECT 2, other.* FROM (
                    {GROUP} AND (j.queue, {METHOD_NAME}) > (part.queue, part.method)
                    ORDER BY j.queue, {METHOD_NAME}, j.priority DESC LIMIT 1) AS other)
            ) AS either ORDER BY place LIMIT 1
        ) AS next
    )
"""
"""Each queue, method and priority of what is Enqueued, as `part`."""

LISTING: Final = ListingQueries(
    enqueued="""
        SELECT count(*) AS jobs FROM (
            SELECT FROM {s}.jobs WHERE state = 'enqueued' AND id <> '' LIMIT %(most)s) AS waiting
    """,
    groups=f"WITH RECURSIVE {_EACH_GROUP} SELECT queue, method, priority FROM part LIMIT %(most)s",
    of_kind="""
        SELECT count(*) AS jobs FROM (
            SELECT FROM {s}.jobs
            WHERE state IN ('failed', 'awaiting_retry') AND last_error_key = %(kind)s
            LIMIT %(most)s) AS failures
    """,
    edges=_edges,
    page=_page,
    meant=_meant,
    with_id=f"""
        SELECT {_BRIEF} FROM {{s}}.jobs AS j
        WHERE j.id >= %(start)s AND j.id < %(end)s ORDER BY j.id DESC LIMIT %(limit)s
    """,
)
