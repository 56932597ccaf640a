"""Every process: limits of queues and methods, set and read; `limited` has what they do to claims."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from qml_mp.core.limits import Limit, LimitKind, Standing
from qml_mp.storage.database import Operations, Values
from qml_mp.storage.limited import look_of, standings_by_key, waiting_query
from qml_mp.storage.storable import microseconds
from qml_mp.storage.values import Openings
from qml_mp.storage.waiting import MANY_JOBS


class Limits(Operations):
    """Limits hold for every claim that begins after they were committed, on whatever machine."""

    def set_paused(self, queue: str, paused: bool) -> None:
        """Have no job of the queue be claimed, until told otherwise."""
        self._set("pausing a queue", [Limit(kind=LimitKind.QUEUE, name=queue, paused=paused)], ("paused",))

    def limit(self, limit: Limit, *, only: Sequence[str] = ("max_running", "rate")) -> None:
        """Have both limits be these, on all machines together, or `only` the ones of these names. Jobs that
        run already are counted."""
        self._set(f"limiting a {limit.kind}", [limit], only)

    def declare_limits(self, methods: Collection[str], declared: Mapping[str, Limit]) -> bool:
        """Have these methods be limited as the code says, and those that it does not name not at all; whether
        anything had to be changed."""
        held = {
            standing.limit.name: standing.limit
            for standing in self.standings()
            if standing.limit.kind is LimitKind.METHOD and standing.limit.name in methods
        }
        if held == dict(declared):
            return False
        limits = [
            declared.get(name) or Limit(kind=LimitKind.METHOD, name=name)
            # In one order, as two that declare the same ones would wait for each other.
            for name in sorted(held.keys() | declared.keys())
        ]
        self._set("declaring limits", limits, ("max_running", "rate"))
        return True

    def standings(self) -> list[Standing]:
        """Every limit and how far it is used, queues by name after methods."""
        rows = self._db.read("reading limits", self._db.queries.limits.standings)
        return list(standings_by_key(rows, self._db.instant).values())

    def openings(self, queues: Sequence[str], *, methods: Sequence[str] | None = None) -> Openings:
        """How many jobs of the queues (empty: all) and methods (None: all) may begin now, and when others
        may."""
        wanted = {"queues": list(queues), "methods": None if methods is None else list(methods)}
        what, queries = "looking for jobs", self._db.queries.limits
        waiting = self._db.read(what, waiting_query(self._db, wanted), wanted)
        if not waiting:
            return Openings(jobs=0, next_in=None, limited=bool(self._db.read(what, queries.any)))
        look = look_of(self._db, standings=self._db.read(what, queries.standings), waiting=waiting)
        free = [MANY_JOBS if bound is None else bound for bound in map(look.free, look.waiting)]
        waits = (look.next_in(kind) for kind in look.waiting)
        next_in = min((wait for wait in waits if wait is not None), default=None)
        return Openings(jobs=min(sum(free), MANY_JOBS), next_in=next_in, limited=bool(look.standings))

    def _set(self, what: str, limits: Iterable[Limit], columns: Sequence[str]) -> None:
        """Only these columns of each."""
        queries = self._db.queries.limits
        by_column = {
            "paused": queries.set_paused,
            "max_running": queries.set_max_running,
            "rate": queries.set_rate,
        }
        with self._db.transaction(what) as transaction:
            for limit in limits:
                values = _values_of(limit)
                for column in columns:
                    transaction.run(by_column[column], values)
            # Last: a claim that holds one of those that are set may wait for one that is removed.
            transaction.run(queries.remove_if_empty)


def _values_of(limit: Limit) -> Values:
    rate = limit.rate
    return {
        "kind": str(limit.kind),
        "name": limit.name,
        "paused": limit.paused,
        "max_running": limit.max_running,
        "rate": rate and rate.count,
        "per_us": rate and microseconds(rate.per),
    }
