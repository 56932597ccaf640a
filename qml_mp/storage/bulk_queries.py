"""Every process: what each backend's table of named queries has for many jobs at a time; see `queries`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkQueries:
    """Many jobs at a time. Not meant are those that have ended after `until`."""

    retry: str
    """ids, until: as `JobQueries.retry`, without those whose unique key another has; id of each hit."""
    delete: str
    """ids, states, until, reason, ttl: make Deleted those in one of these states; id of each hit."""
    unknown: str
    """method, queues (none of them: all), waiting_since, limit: what is Enqueued since before; id of each."""
    fail_unknown: str
    """ids, waiting_since, type, message, key, ttl: set Failed those that still are; id of each hit."""
