"""Every process: what several queries have in common."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from qml_mp.core.job import MAX_METHOD_CHARS
from qml_mp.storage.job_rows import CLAIM_COLUMNS, JOB_COLUMNS, released_columns
from qml_mp.storage.values import UNREAD_BYTES, JobFilter


def _of_j(columns: str) -> str:
    return ", ".join(f"j.{name.strip()}" for name in columns.split(","))


JOB: Final = _of_j(JOB_COLUMNS)
CLAIM: Final = _of_j(CLAIM_COLUMNS)
RELEASED: Final = released_columns(of="j.")
"""Of the jobs as `j`."""

_LONG: Final = ("payload", "metadata", "last_error_message", "last_error_traceback")
_SIZE: Final = " + ".join(f"coalesce(octet_length({column}), 0)" for column in _LONG)
CAN_BE_SENT: Final = f"""
    (%(read_at_once)s OR {UNREAD_BYTES} >= (
        -- Each is looked up by itself: how a join is planned would depend on how many are expected.
        SELECT coalesce(sum((SELECT {_SIZE} FROM {{s}}.jobs WHERE id = c.id)), 0) FROM candidate AS c
    ))
"""
"""Whether the server can send the jobs that are a `candidate`, read or not. All or none: the best are not
passed over."""

_FILTER: Final = {
    "queue": "queue = %(queue)s",
    "method": "method = %(method)s",
    "error": """position(lower(%(error)s::text COLLATE "C") IN
        lower((last_error_type || ': ' || coalesce(last_error_message, '')) COLLATE "C")) > 0""",
    "since": "coalesce(finished_at, enqueued_at, created_at) >= %(since)s",
    "until_time": "coalesce(finished_at, enqueued_at, created_at) <= %(until_time)s",
    "kind": "last_error_key = %(kind)s",
}
"""What a `JobFilter` may ask for beside states. Like SQLite's, `lower` is for ASCII letters."""

KNOWN: Final = "(%(methods)s::text[] IS NULL OR method = ANY(%(methods)s::text[]))"
"""Of the methods that were asked for."""

SERVED: Final = "(%(queues)s::text[] = '{{}}' OR queue = ANY(%(queues)s::text[]))"
"""Of the queues that were asked for."""


class Told(StrEnum):
    """What a notification says of its commit. The server folds equal ones of a transaction into one."""

    ONE_JOB = "1"
    """One job can run now, and nothing else has changed. Not twice in a transaction: it would tell of one."""
    NO_JOB = "0"
    """Something has changed, and no job can run now because of it."""
    MANY = ""
    """Anything may have changed."""


def notify(quoted_channel: str, told: Told) -> bytes:
    """The statement that tells the listeners."""
    return f"NOTIFY {quoted_channel}, '{told}'".encode()


TELL_IF_ANY: Final = f"CASE WHEN count(*) > 0 THEN pg_notify(%(channel)s, '{Told.MANY}') END AS told"
"""Announces the commit, when there was anything to write."""

# How methods are told apart. Cut, because an index takes no text of any length; longer than any name that a
# program can register, so that those are whole.
METHOD_NAME: Final = f'left(j.method, {MAX_METHOD_CHARS + 1}) COLLATE "C"'

# The first part is always true: without one about its key, the table would be read past its index.
HOLDS_BACK: Final = "kind > '' AND (paused OR max_running IS NOT NULL OR rate IS NOT NULL)"
"""Whether a row of `limits` does. One that does not keeps the turn of a rate that was ended."""

ANY_LIMIT: Final = f"EXISTS (SELECT FROM {{s}}.limits WHERE {HOLDS_BACK})"

GROUP: Final = f"""
    SELECT j.queue, {METHOD_NAME} AS method, j.priority FROM {{s}}.jobs AS j
    WHERE j.state = 'enqueued' AND j.queue <> ''
"""
"""The queue, method and priority of each job that is Enqueued, as `j`."""


def counted(change: str) -> str:
    """How many rows the change gives back; the commit, after which no job can run that could not before, is
    announced when there are any."""
    told = f"CASE WHEN count(*) > 0 THEN pg_notify(%(channel)s, '{Told.NO_JOB}') END AS told"
    return f"WITH written AS ({change}) SELECT count(*) AS count, {told} FROM written"


def asked_for(where: JobFilter) -> str:
    """What the filter asks for beside states, as a condition."""
    return " AND ".join(_FILTER[name] for name in where.values()) or "true"
