"""Every process: what each backend's table of named queries has for listings of jobs; see `queries`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from qml_mp.core.state import StateName
from qml_mp.storage.values import JobFilter


class Order(Enum):
    """Which way a listing goes on from a place in it."""

    OLDER = "DESC"
    NEWER = "ASC"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessPath:
    """How a listing comes to the jobs: to the Enqueued by groups."""

    groups: tuple[tuple[str, str, int], ...] | None
    """Queue, method and priority of each; None: all in one, which is sorted."""
    kind_is_rare: bool = True
    """Jobs of the kind that is asked for are few, and are read as such."""

    def values(self) -> dict[str, object]:
        """What the queries are bound to for it."""
        if self.groups is None:
            return {}
        return {
            "group_queues": [group[0] for group in self.groups],
            "group_methods": [group[1] for group in self.groups],
            "group_priorities": [group[2] for group in self.groups],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingQueries:
    """Jobs between two places, older and newer (each `_at` and `_id`, without itself), in the order given."""

    enqueued: str
    """most: how many are Enqueued, at most so many counted; jobs."""
    groups: str
    """most: queue, method, priority of what is Enqueued, at most so many."""
    of_kind: str
    """kind, most: how many failures of the kind there are, at most so many counted; jobs."""
    edges: Callable[[JobFilter, Order, AccessPath], str]
    """A range, values of the path, skip, skip_of_group: of each state the place of the job behind so many,
    if it has one; of each group of the Enqueued likewise."""
    page: Callable[[JobFilter, Order, AccessPath, bool], str]
    """A range, values of the filter and the path, limit: so many jobs; if they are to be brief, with
    is_cut, for which brief_chars says what is long."""
    meant: Callable[[StateName, JobFilter, AccessPath, bool], str]
    """A range, values of the filter and the path (no group, or a single one), until: what follows a SELECT
    of those in this state, without those that are younger or ended later. True: of those that run only those
    that have since before."""
    with_id: str
    """start, end, limit, brief_chars: brief jobs with ids between these."""

    def count_meant(self, where: JobFilter, path: AccessPath, ran_then: bool) -> str:
        """How many are meant of each state: state, jobs."""
        return " UNION ALL ".join(
            f"SELECT '{state}' AS state, count(*) AS jobs {self.meant(state, where, path, ran_then)}"
            for state in where.each_state()
        )

    def ids_meant(self, where: JobFilter, path: AccessPath, ran_then: bool) -> str:
        """Which these are: id."""
        return " UNION ALL ".join(
            f"SELECT id {self.meant(state, where, path, ran_then)}" for state in where.each_state()
        )
