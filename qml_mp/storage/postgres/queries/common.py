"""Every process: what several queries have in common."""

from __future__ import annotations

from typing import Final

from qml_mp.core.job import MAX_METHOD_CHARS
from qml_mp.storage.rows import JOB_COLUMNS

JOB: Final = ", ".join(f"j.{name.strip()}" for name in JOB_COLUMNS.split(","))
"""Of the jobs as `j`."""

KNOWN: Final = "(%(methods)s::text[] IS NULL OR method = ANY(%(methods)s::text[]))"
"""Of the methods that were asked for."""

SERVED: Final = "(%(queues)s::text[] = '{{}}' OR queue = ANY(%(queues)s::text[]))"
"""Of the queues that were asked for."""

TELL_IF_ANY: Final = "CASE WHEN count(*) > 0 THEN pg_notify(%(channel)s, '') END AS told"
"""Announces the commit, when there was anything to write."""

# How methods are told apart. Cut, because an index takes no text of any length; longer than any name that a
# program can register, so that those are whole.
METHOD_NAME: Final = f'left(j.method, {MAX_METHOD_CHARS + 1}) COLLATE "C"'


def counted(change: str) -> str:
    """How many rows the change gives back; the commit is announced when there are any."""
    return f"WITH written AS ({change}) SELECT count(*) AS count, {TELL_IF_ANY} FROM written"
