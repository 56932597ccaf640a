"""Every process: the table of named queries that each backend fills with its SQL.

A query's sentence here is its contract: what it is bound to, what it does, which columns it gives. The why of
a lock, an order or a limit stands beside the SQL. A query that a backend lacks or misspells fails typing.
Beside the values that are named here, a query may use what its backend adds to all of them.
"""

from __future__ import annotations

from dataclasses import dataclass


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
class Queries:
    """All of them, by topic."""

    locks: LockQueries
