"""Every process: the table of named queries that each backend fills with its SQL.

A query's sentence here is its contract: what it is bound to, what it does, which columns it gives. The why of
a lock, an order or a limit stands beside the SQL. A query that a backend lacks or misspells fails typing.
Beside the values that are named here, a query may use what its backend adds to all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qml_mp.core.state import StateName


@dataclass(frozen=True, slots=True, kw_only=True)
class LockQueries:
    """Named locks."""

    acquire: str
    """resource, owner, ttl: create, refresh for the same owner, or take over when expired; else hit none."""
    release: str
    """resource, owner: delete the lock of this owner."""
    delete_expired: str
    """Delete what has expired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringQueries:
    """What people and `--burst` read. No queues: all of them; methods None: any; server_id None: any."""

    list_jobs: Callable[[Iterable[StateName]], str]
    """Of the states, which are part of the text: before_at, before_id, queue, method (None: any), limit: a
    page of jobs, newest first."""
    job_counts: str
    """state, jobs; states without jobs may be missing."""
    attempts: str
    """id: what `rows.attempt_of` reads, oldest first."""
    queue_stats: str
    """queue, enqueued, processing, oldest_at, now, by name, of queues with jobs that have not ended."""
    method_stats: str
    """queues, among (None: all): queue, method, enqueued of what waits, at most so many counted of each."""
    due_work: str
    """queues, methods, server_id: runnable, waiting; see `DueWork`."""
    later_work: str
    """queues: jobs, due_at of the first, now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queries:
    """All of them, by topic."""

    locks: LockQueries
    monitoring: MonitoringQueries
