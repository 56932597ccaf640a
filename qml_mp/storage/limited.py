"""Every process: what may be claimed while there are limits, and how it is, so that no limit is exceeded.

Jobs are told apart by queue and method. What no limit is about is claimed as ever, several at a time, but not
before what is better and may begin under its limits. That is claimed one at a time: its limits are locked, in
the order of their keys, and only then is counted what runs. So whoever claims under the same limit has
committed before, and is counted; a held claim counts as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import NamedTuple

from qml_mp.core.job import Job
from qml_mp.core.limits import Limit, LimitKind, Rate, Standing
from qml_mp.storage.database import Database, Transaction, Values
from qml_mp.storage.rows import Columns, Row, ToInstant, text_of

_MOST_TRIED = 100
"""Methods of queues that turn out to have no place left, until the next time."""

Key = tuple[LimitKind, str]


def keys_of(queue: str, method: str) -> tuple[Key, Key]:
    """Of the limits that may be about a job."""
    return (LimitKind.QUEUE, queue), (LimitKind.METHOD, method)


class Kind(NamedTuple):
    """The jobs of one method in one queue, and the best of them that waits."""

    queue: str
    method: str
    priority: int
    created_at: datetime
    id: str

    @property
    def keys(self) -> tuple[Key, Key]:
        """Of the limits that may be about them."""
        return keys_of(self.queue, self.method)


class Next(NamedTuple):
    """Whose jobs are claimed next."""

    kinds: tuple[Kind, ...]
    priority: int | None = None
    """Only theirs of this one; None: of any."""
    until: Kind | None = None
    """Only theirs before the best of this kind, which has the same priority."""

    @property
    def bounds(self) -> Values:
        """What a query is bound to."""
        return {
            "only_priority": self.priority,
            "until_at": self.until and self.until.created_at,
            "until_id": self.until and self.until.id,
        }


@dataclass(frozen=True, slots=True)
class Look:
    """What waits, the best first, and what limits it, as of one moment."""

    waiting: tuple[Kind, ...]
    standings: dict[Key, Standing]

    def limits_of(self, kind: Kind) -> list[Standing]:
        """Those that are about these jobs."""
        return [self.standings[key] for key in kind.keys if key in self.standings]

    def free(self, kind: Kind) -> int | None:
        """How many of these jobs may begin now; None: any number."""
        bounds = [standing.free for standing in self.limits_of(kind)]
        return min((bound for bound in bounds if bound is not None), default=None)

    def next_in(self, kind: Kind) -> timedelta | None:
        """In how long one more may begin than now, if time alone does it; at the soonest while some may.

        All that is closed has to open first; when a rate that is open lets the next begin matters after that.
        """
        limits = self.limits_of(kind)
        closed = [standing for standing in limits if standing.free == 0]
        if any(standing.next_in is None for standing in closed):
            return None
        waits = [each.next_in for each in closed or limits if each.next_in is not None]
        return max(waits) if closed else min(waits, default=None)

    def has_place_for_others(self, ended: Iterable[Job], claimed: Iterable[Job]) -> bool:
        """Whether a job that has ended has left a place that none of those that were claimed has taken. What
        waits for it may be in queues, or of methods, that are not looked at here, as others serve them."""
        left = Counter(key for job in ended for key in keys_of(job.queue, job.method))
        left.subtract(key for job in claimed for key in keys_of(job.queue, job.method))
        places = (key for key, number in left.items() if number > 0 and key in self.standings)
        return any(self.standings[key].limit.max_running is not None for key in places)

    def next(self, *, without: Collection[Kind] = ()) -> Next:
        """Whose jobs to claim now: the best, when it is limited, else those of kinds that are not which come
        before the best that is; none: nothing may be."""
        open_kinds = [kind for kind in self.waiting if kind not in without and self.free(kind) != 0]
        limited = next((kind for kind in open_kinds if self.limits_of(kind)), None)
        if limited is None:
            return Next(tuple(open_kinds))
        if limited is open_kinds[0]:
            return Next((limited,))
        # Below the best priority, a kind whose best is above may have jobs that come before those of another.
        priority = open_kinds[0].priority
        best = takewhile(lambda kind: kind is not limited and kind.priority == priority, open_kinds)
        return Next(tuple(best), priority, limited if limited.priority == priority else None)


def waiting_query(db: Database, wanted: Values) -> str:
    """What waits of the queues and methods that are wanted."""
    return db.queries.limits.waiting_in_served if wanted["queues"] else db.queries.limits.waiting_in_all


def look_of(db: Database, *, standings: Sequence[Row], waiting: Sequence[Row]) -> Look:
    """The look that two queries have taken."""
    kinds = tuple(_kind_of(row, db.instant) for row in waiting)
    return Look(kinds, standings_by_key(standings, db.instant))


class LimitedClaim:
    """One claim under limits, made of as many transactions as it takes: no two limits' locks are held at a
    time."""

    def __init__(self, db: Database, wanted: Values, *, limit: int) -> None:
        self._db = db
        self._wanted = wanted
        self._limit = limit
        self._tried: set[Kind] = set()
        self.look = Look((), {})
        """The newest."""
        self.taking = wanted
        """What the newest query that claims was bound to."""

    def rows(self) -> Sequence[Columns]:
        """What was claimed."""

        def try_alone() -> Sequence[Columns] | None:
            with self._db.transaction("claiming a job") as transaction:
                return self._try(transaction)

        return self._first_of(try_alone)

    def rows_in(self, transaction: Transaction) -> Sequence[Columns]:
        """The same in an open transaction, which must be the only one that writes."""
        return self._first_of(lambda: self._try(transaction))

    def _first_of(self, attempt: Callable[[], Sequence[Columns] | None]) -> Sequence[Columns]:
        """Of as many attempts as it takes."""
        for _ in range(_MOST_TRIED):
            claimed = attempt()
            if claimed is not None:
                return claimed
        return ()

    def _try(self, transaction: Transaction) -> Sequence[Columns] | None:
        """None: somebody else has taken the last place, or the last jobs of these kinds, or set a limit."""
        standings = transaction.run(self._db.queries.limits.standings)
        waiting = transaction.run(waiting_query(self._db, self._wanted), self._wanted)
        known = self.look.standings.keys()
        self.look = look_of(self._db, standings=standings.rows(), waiting=waiting.rows())
        if not self.look.standings.keys() <= known:
            self._tried.clear()  # perhaps it was the new limit that kept them back
        chosen = self.look.next(without=self._tried)
        if not chosen.kinds:
            return ()
        if not self.look.limits_of(chosen.kinds[0]):
            self._tried.update(chosen.kinds)
            return self._take(transaction, chosen, self._limit, limits=()) or None
        return self._take_one(transaction, chosen)

    def _take_one(self, transaction: Transaction, chosen: Next) -> Sequence[Columns] | None:
        [kind], limits = chosen.kinds, self._db.queries.limits
        lock = transaction.run(limits.lock, {"queue": kind.queue, "method": kind.method})
        # A query of its own, so that it sees what those have committed for whom the lock has waited.
        rows = transaction.run(limits.standings).rows()
        now = Look((), standings_by_key(rows, self._db.instant))
        locked = {(LimitKind(row["kind"]), text_of(row["name"])) for row in lock.rows()}
        if any(key in now.standings and key not in locked for key in kind.keys):
            return None  # it was set while the lock waited for the other one: the next attempt locks both
        self._tried.add(kind)
        if now.free(kind) == 0:
            return None
        held = now.limits_of(kind)
        claimed = self._take(transaction, chosen, 1, limits=held)
        for standing in held if claimed else ():
            rate = standing.limit.rate
            if rate is not None:
                next_at = rate.after_one(standing.next_at, standing.now)
                key = {"kind": str(standing.limit.kind), "name": standing.limit.name}
                transaction.run(limits.spend, {**key, "next_at": next_at})
        return claimed or None

    def _take(
        self, transaction: Transaction, chosen: Next, limit: int, *, limits: Sequence[Standing]
    ) -> Sequence[Columns]:
        """Claim up to so many; none when any other limit than these, which were looked at, is about the
        kinds: one that was set since."""
        kinds = chosen.kinds
        self.taking = {
            **self._wanted,
            **chosen.bounds,
            "limit": limit,
            "kind_queues": [kind.queue for kind in kinds],
            "kind_methods": [kind.method for kind in kinds],
            "kind_priorities": [kind.priority for kind in kinds],
            "kind_times": [kind.created_at for kind in kinds],
            "kind_ids": [kind.id for kind in kinds],
            "kind_limits": [f"{each.limit.kind} {each.limit.name}" for each in limits],
            # The instant for which a rate let it begin: the transaction may have waited for a lock since it
            # began, and many that waited together would all seem to have begun then.
            "began_at": max((each.now for each in limits), default=None),
        }
        rows = transaction.run(self._db.queries.claims.of_kinds.claim, self.taking).tuples()
        return [row for row in rows if row[0] is not None]


def standings_by_key(rows: Iterable[Row], instant: ToInstant) -> dict[Key, Standing]:
    """The limits of these rows."""
    standings = (_standing_of(row, instant) for row in rows)
    return {(standing.limit.kind, standing.limit.name): standing for standing in standings}


def _standing_of(row: Row, instant: ToInstant) -> Standing:
    now = instant(row["now"])
    assert now is not None  # the query's own clock
    per = row["per_us"]
    limit = Limit(
        kind=LimitKind(row["kind"]),
        name=text_of(row["name"]),
        paused=bool(row["paused"]),
        max_running=row["max_running"],
        rate=None if per is None else Rate(row["rate"], timedelta(microseconds=per)),
    )
    return Standing(limit=limit, running=row["running"], next_at=instant(row["next_at"]), now=now)


def _kind_of(row: Row, instant: ToInstant) -> Kind:
    created_at = instant(row["created_at"])
    assert created_at is not None  # the schema keeps out what cannot be read
    return Kind(row["queue"], row["method"], row["priority"], created_at, row["id"])
