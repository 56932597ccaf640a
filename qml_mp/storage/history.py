"""Every process: the history of what came of claims, by minute, ten minutes, hour and day.

A row holds what one run of a server has counted in one period, of all methods and queues, as JSON with the
buckets that are not empty. So a server writes a handful of rows at a time, and a reader adds up a few hundred
at most, whatever the range: it takes the periods that suit it. Their numbers only grow, and are written
whole: to write them again after a lost reply adds nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from qml_mp.core.history import NUMBERS, RAN_AT, Ending, SeriesKey, Tally, sum_of, tally_of
from qml_mp.core.job import ClaimKey, Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.payload import JsonValue
from qml_mp.core.state import StateName
from qml_mp.storage.database import Operations
from qml_mp.storage.job_rows import job_of
from qml_mp.storage.rows import EPOCH, Row, optional_text_of

MINUTE, TEN_MINUTES, HOUR, DAY = (timedelta(minutes=minutes) for minutes in (1, 10, 60, 1440))
STEPS = (MINUTE, TEN_MINUTES, HOUR, DAY)
"""The lengths of periods, which begin at whole ones in UTC."""
_MOST_POINTS = 200
_FINAL = {
    StateName.SUCCEEDED: Ending.SUCCEEDED,
    StateName.FAILED: Ending.FAILED,
    StateName.DELETED: Ending.CANCELLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """What one writer has counted in a period, so far."""

    step: timedelta
    begins_at: datetime
    writer: str
    numbers: Mapping[SeriesKey, Sequence[int]]
    """As `core.history` knows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPoint:
    """What all servers have counted in a period."""

    begins_at: datetime
    tallies: Mapping[Ending, Tally] = field(default_factory=dict)

    @property
    def total(self) -> Tally:
        """Of all attempts: what was given back is none."""
        return sum_of(tally for ending, tally in self.tallies.items() if ending is not Ending.RELEASED)

    def count(self, *endings: Ending) -> int:
        """How many came to one of these."""
        return sum(self.tallies[ending].count for ending in endings if ending in self.tallies)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedClaim:
    """What the row and the attempts of its job tell of a claim."""

    job: Job
    """As it is now, without what is long; it may have gone on to other claims."""
    ending: Ending | None
    """What the claim came to; None: nothing tells of it, as when it was lost to somebody else or given back,
    or holds still."""


def step_of(span: timedelta) -> timedelta:
    """The shortest periods of which no more than 200 make up so much time."""
    return next((step for step in STEPS if span / step <= _MOST_POINTS), DAY)


def coarse_step_of(span: timedelta) -> timedelta:
    """For a sum over so much time: periods that are a sixth of it at most, or minutes."""
    return next((step for step in reversed(STEPS) if span / step >= 6), MINUTE)


def floor_to(step: timedelta, instant: datetime) -> datetime:
    """When the period began in which this instant is."""
    return instant - (instant - EPOCH) % step


class History(Operations):
    """What has ended, counted."""

    def note_history(self, periods: Sequence[Period]) -> int:
        """Write these; how many have changed something. No period of a writer twice.

        One statement, which may be repeated. What was written of a period before gives way to what counts
        more claims.
        """
        if not periods:
            return 0
        rows = _text([_row(period) for period in periods])
        with self._db.transaction("noting the history", durable=False) as transaction:
            noted = transaction.run(self._db.queries.history.note, {"rows": rows})
        return noted.count

    def history(
        self,
        step: timedelta,
        *,
        since: datetime,
        until: datetime,
        queue: str | None = None,
        method: str | None = None,
    ) -> list[HistoryPoint]:
        """What came of claims in the periods that begin from `since` on and before `until`, oldest first; of
        a queue, a method, or a method in a queue alone. Periods without any are left out.

        `step` is one of `STEPS`: see `step_of`. A period in which a server was cut off from storage comes
        once it is back.
        """
        found: dict[datetime, dict[Ending, list[int]]] = {}
        for begins_at, told in self._periods(step, since, until, queue=queue, method=method):
            point = found.setdefault(begins_at, {})
            for flat in _flats(told, queue=queue, method=method):
                _add(point, flat)
        return [
            HistoryPoint(begins_at=begins_at, tallies=_tallies(found[begins_at]))
            for begins_at in sorted(found)
            if found[begins_at]
        ]

    def history_by_method(
        self, *, since: datetime, until: datetime, queue: str | None = None
    ) -> dict[str, HistoryPoint]:
        """What came of the claims of each method since then, or since a little before: since whole minutes,
        ten minutes, hours or days, by how long that is."""
        step = coarse_step_of(until - since)
        rows = self._told(self._db.queries.history.methods, step, floor_to(step, since), until)
        found: dict[str, dict[Ending, list[int]]] = {}
        for _, told in rows:
            for method, queues in told.items():
                for name, flat in _items(queues):
                    if queue is None or name == queue:
                        _add(found.setdefault(method, {}), flat)
        return _points(found, floor_to(step, since))

    def history_by_queue(self, *, since: datetime, until: datetime) -> dict[str, HistoryPoint]:
        """The same of each queue."""
        step = coarse_step_of(until - since)
        found: dict[str, dict[Ending, list[int]]] = {}
        for _, told in self._told(self._db.queries.history.queues, step, floor_to(step, since), until):
            for queue, flat in told.items():
                _add(found.setdefault(queue, {}), flat)
        return _points(found, floor_to(step, since))

    def forget_history(self, *, older_than: timedelta, limit: int) -> int:
        """Delete up to so many rows of periods that ended so long ago, the oldest first; how many. A period
        of which a part is younger stays whole, for the sums that begin in it."""
        queries, values = self._db.queries.history, {"older_than": older_than, "limit": limit}
        return self._delete_old(
            "forgetting history", any_old=queries.any_old, query=queries.forget, values=values
        )

    def _periods(
        self, step: timedelta, since: datetime, until: datetime, *, queue: str | None, method: str | None
    ) -> Iterator[tuple[datetime, Mapping[str, JsonValue]]]:
        queries = self._db.queries.history
        if method is not None:
            return self._told(queries.method, step, since, until, method=method)
        return self._told(queries.totals if queue is None else queries.queues, step, since, until)

    def _told(
        self, query: str, step: timedelta, since: datetime, until: datetime, **more: str
    ) -> Iterator[tuple[datetime, Mapping[str, JsonValue]]]:
        which = {"step_s": int(step.total_seconds()), "since": since, "until": until, **more}
        return self._of_rows(self._db.read("reading the history", query, which))

    def _of_rows(self, rows: Sequence[Row]) -> Iterator[tuple[datetime, Mapping[str, JsonValue]]]:
        for row in rows:
            told = _read(row["told"])
            if isinstance(told, dict):
                yield self._db.instant(row["begins_at"]) or EPOCH, told

    def recorded_claims(self, keys: Collection[ClaimKey]) -> dict[ClaimKey, RecordedClaim]:
        """What is stored of these claims, read at once; nothing of those whose job is gone."""
        if not keys:
            return {}
        which = {"ids": [key.job_id for key in keys], "claim_seqs": [key.claim_seq for key in keys]}
        rows = self._db.read("reading what claims came to", self._db.queries.history.recorded, which)
        recorded = {}
        for row in rows:
            job = job_of(row, self._db.instant)
            key = ClaimKey(job_id=job.id, claim_seq=row["of_claim"])
            ending = _FINAL.get(job.state_name) if job.claim_seq == key.claim_seq else None
            recorded[key] = RecordedClaim(job=job, ending=ending or _ending_of(row["ended_as"]))
        return recorded


def _row(period: Period) -> dict[str, JsonValue]:
    """With the sums over methods and queues, which most readers want."""
    totals: dict[Ending, list[int]] = {}
    queues: dict[str, dict[Ending, list[int]]] = {}
    methods: dict[str, dict[str, dict[str, JsonValue]]] = {}
    for key, numbers in period.numbers.items():
        _add_numbers(totals, key.ending, numbers)
        _add_numbers(queues.setdefault(key.queue, {}), key.ending, numbers)
        methods.setdefault(key.method, {}).setdefault(key.queue, {})[key.ending] = _sparse(numbers)
    return {
        "step_s": int(period.step.total_seconds()),
        "begins_s": int(period.begins_at.timestamp()),
        "writer": period.writer,
        "claims": sum(sum(numbers[RAN_AT:]) for numbers in totals.values()),
        "totals": _text(_flat(totals)),
        "queues": _text({queue: _flat(each) for queue, each in queues.items()}),
        "methods": _text(methods),
    }


def _text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))  # all of it is ours


def _read(text: object) -> object:
    """None: another program has put something else there."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _flat(numbers: Mapping[Ending, Sequence[int]]) -> dict[str, JsonValue]:
    return {str(ending): _sparse(each) for ending, each in numbers.items()}


def _sparse(numbers: Sequence[int]) -> list[JsonValue]:
    """The two sums, then place and number of each bucket that is not empty."""
    buckets = [(place, numbers[place]) for place in range(2, NUMBERS) if numbers[place]]
    return [numbers[0], numbers[1], *(number for bucket in buckets for number in bucket)]


def _flats(told: Mapping[str, JsonValue], *, queue: str | None, method: str | None) -> Iterable[JsonValue]:
    """What is meant of a row that was read for it, by ending."""
    if method is not None:
        return [flat for name, flat in told.items() if queue is None or name == queue]
    return [dict(told)] if queue is None else [told.get(queue)]


def _items(value: JsonValue) -> Iterable[tuple[str, JsonValue]]:
    return value.items() if isinstance(value, dict) else ()


def _add(sums: dict[Ending, list[int]], flat: JsonValue) -> None:
    """Add what is told by ending. What another program has put there is passed over."""
    for name, sparse in _items(flat):
        ending = _ENDINGS.get(name)
        if ending is None or not isinstance(sparse, list):
            continue
        here: list[Any] = sums.setdefault(ending, [0] * NUMBERS)
        try:
            here[0] += sparse[0]
            here[1] += sparse[1]
            for place, number in zip(sparse[2::2], sparse[3::2], strict=True):
                here[place] += number  # type: ignore[index]
        except (TypeError, ValueError, IndexError):
            continue


def _add_numbers(sums: dict[Ending, list[int]], ending: Ending, numbers: Sequence[int]) -> None:
    before = sums.get(ending)
    sums[ending] = list(numbers) if before is None else [a + b for a, b in zip(before, numbers, strict=True)]


def _tallies(sums: Mapping[Ending, Sequence[int]]) -> dict[Ending, Tally]:
    return {
        ending: tally_of(sums[ending]) for ending in Ending if set(map(type, sums.get(ending, ()))) == {int}
    }


def _points(
    sums: Mapping[str, Mapping[Ending, Sequence[int]]], begins_at: datetime
) -> dict[str, HistoryPoint]:
    return {name: HistoryPoint(begins_at=begins_at, tallies=_tallies(sums[name])) for name in sorted(sums)}


_ENDINGS = {str(ending): ending for ending in Ending}


def _ending_of(kind: object) -> Ending | None:
    """By the kind of its attempt, of a claim whose job has gone on since; None: it has none."""
    match optional_text_of(kind):
        case None:
            return None
        case AttemptKind.CANCELLED:
            return Ending.CANCELLED
        case AttemptKind.CRASH:
            return Ending.CRASHED
        case _:
            return Ending.RETRIED
