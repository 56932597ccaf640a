"""Every process: what several queries have in common."""

from __future__ import annotations

from typing import Final

from qml_mp.storage.values import JobFilter

ENDED: Final = "(state = 'succeeded' OR state = 'failed' OR state = 'deleted')"
"""As the indexes of ended jobs have it, word for word."""

_FILTER: Final = {
    "queue": "queue = :queue",
    "method": "method = :method",
    "error": "instr(lower(last_error_type || ': ' || COALESCE(last_error_message, '')), lower(:error))",
    "since": "COALESCE(finished_at, enqueued_at) >= :since",
    "until_time": "COALESCE(finished_at, enqueued_at) <= :until_time",
    "kind": "last_error_key = :kind",
}
"""What a `JobFilter` may ask for beside states. `lower` is for ASCII letters."""

KNOWN: Final = "(:methods IS NULL OR method IN (SELECT value FROM json_each(:methods)))"
"""Of the methods that were asked for."""

SERVED: Final = "(:queues = '[]' OR queue IN (SELECT value FROM json_each(:queues)))"
"""Of the queues that were asked for."""

FREE: Final = """
    method IN (SELECT value FROM json_each(:methods))
    AND (tries = 0 OR due_at <= :now
         OR (taken_by IS NOT NULL AND NOT EXISTS (SELECT 1 FROM qml_workers WHERE id = taken_by)))
"""
"""Of callbacks of failures and of lost attempts: those that are due, or whose taker is there no more. One
that nobody has tried is due: the clock may have been set back."""

EARLY_CALL: Final = "taken_by IS NULL AND due_at > :now + 360000000"
"""Of callbacks of failures: due later than by any pause of now."""

EARLY_SPAN: Final = "tries > 0 AND due_at > :now + 60000000 * ((1 << MIN(tries - 1, 10)) + 1)"
"""Of lost attempts: due later than by its newest try, if that were now."""

HOLDS_BACK: Final = "(paused OR max_running IS NOT NULL OR rate IS NOT NULL)"
"""Whether a row of `qml_limits` does. One that does not keeps the turn of a rate that was ended."""

ANY_LIMIT: Final = f"EXISTS (SELECT 1 FROM qml_limits WHERE {HOLDS_BACK})"

# From one priority, method and queue of what is Enqueued to the next, with one look at the index each: for
# (queue, method) > (…) it would be asked for the queue alone.
NEXT_PRIORITY: Final = """
    (SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_enqueued
     WHERE state = 'enqueued' AND queue = part.queue AND method = part.method AND priority < part.priority
     ORDER BY priority DESC LIMIT 1)
"""
NEXT_METHOD: Final = """
    (SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_enqueued
     WHERE state = 'enqueued' AND queue = part.queue AND method > part.method
     ORDER BY method, priority DESC LIMIT 1)
"""
NEXT_QUEUE: Final = """
    (SELECT rowid FROM qml_jobs INDEXED BY qml_jobs_enqueued
     WHERE state = 'enqueued' AND queue > part.queue ORDER BY queue, method, priority DESC LIMIT 1)
"""
"""Each the row of the first job of what comes next behind `part`."""


def asked_for(where: JobFilter) -> str:
    """What the filter asks for beside states, as a condition."""
    return " AND ".join(_FILTER[name] for name in where.values()) or "true"
