"""Every process: what several queries have in common."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from qml_mp.core.job import MAX_METHOD_CHARS
from qml_mp.storage.rows import JOB_COLUMNS

JOB: Final = ", ".join(f"j.{name.strip()}" for name in JOB_COLUMNS.split(","))
"""Of the jobs as `j`."""

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

_MOST_TOLD_BYTES: Final = 7900
"""Of one notification; the server takes less than 8000."""


def told_to_waiters(ended: str) -> str:
    """Always 0: tells those who wait for any of the jobs whose ids the subquery `ended` gives. A number, so
    that a query with many rows can add it to one that it has, and needs no column for it.

    A NOTIFY has commits wait for each other, so there is none when nobody waits for these jobs. Who begins
    to wait meanwhile, and is not seen by this statement, looks again soon.
    """
    ids = "string_agg(DISTINCT w.job_id, ',')"
    return f"""
        CASE WHEN EXISTS (SELECT FROM {{s}}.waits) THEN coalesce((
            SELECT length(pg_notify(%(ended_channel)s,
                CASE WHEN octet_length({ids}) <= {_MOST_TOLD_BYTES} THEN {ids} ELSE '' END)::text)
            FROM {{s}}.waits AS w WHERE w.job_id IN ({ended}) HAVING count(*) > 0
        ), 0) ELSE 0 END
    """


# How methods are told apart. Cut, because an index takes no text of any length; longer than any name that a
# program can register, so that those are whole.
METHOD_NAME: Final = f'left(j.method, {MAX_METHOD_CHARS + 1}) COLLATE "C"'


def counted(change: str) -> str:
    """How many rows the change gives back; the commit, after which no job can run that could not before, is
    announced when there are any."""
    told = f"CASE WHEN count(*) > 0 THEN pg_notify(%(channel)s, '{Told.NO_JOB}') END AS told"
    return f"WITH written AS ({change}) SELECT count(*) AS count, {told} FROM written"
