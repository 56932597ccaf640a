"""Anywhere: what came of claims, counted: by method, queue and ending, with how long jobs waited and ran.

Durations are counted in fixed buckets, so that counts of several workers, servers and minutes are added up
number by number, and a quantile is read off the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from qml_mp.core.job import Job
from qml_mp.core.outcome import Crash, Outcome, Release
from qml_mp.core.state import Processing, StateName

BOUNDS_S = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5,
    1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0,
)  # fmt: skip
"""The upper bounds of the buckets, which are part of them, from 1 ms to 1 h; the last bucket has none."""
BOUNDS_US = tuple(round(bound * 1_000_000) for bound in BOUNDS_S)
BUCKETS = len(BOUNDS_US) + 1
BEYOND_BOUNDS = timedelta.max
"""A quantile in the last bucket: longer than the last bound, and nobody knows by how much."""
_MOST_US = 2**53 - 1  # of one duration; every program reads it exactly from JSON
_US_OF_A_DAY, _US_OF_A_SECOND = 86_400_000_000, 1_000_000


class Ending(StrEnum):
    """What a claim that had begun came to."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """The job has failed for good."""
    RETRIED = "retried"
    """The attempt failed, and the job runs again."""
    CRASHED = "crashed"
    """The worker died, and the job runs again."""
    CANCELLED = "cancelled"
    RELEASED = "released"
    """It was given back, and charged to no budget."""

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self in _FINAL


_FINAL = frozenset({Ending.SUCCEEDED, Ending.FAILED, Ending.CANCELLED})
ENDINGS = tuple(Ending)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesKey:
    """What is counted together."""

    method: str
    queue: str
    ending: Ending


OTHER = "(other)"
"""The method and the queue of all that a server has no place for. In brackets, because a method or a queue
may be called "other"."""
MOST_NAMES = 200
"""Methods, queues, or pairs of both that a server counts apart; the others count together, as `OTHER`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How long something took, of many."""

    counts: tuple[int, ...] = (0,) * BUCKETS
    """Of each bucket, not of all up to it."""
    sum_us: int = 0

    @property
    def count(self) -> int:
        return sum(self.counts)

    def quantile(self, part: float) -> timedelta | None:
        """The duration that this part of all (0.5: half) did not exceed, as well as the buckets tell;
        `BEYOND_BOUNDS` in the last one. None: there is nothing."""
        wanted, before = part * self.count, 0
        for number, count in enumerate(self.counts):
            if count and before + count >= wanted:
                if number == len(BOUNDS_US):
                    return BEYOND_BOUNDS
                low, high = BOUNDS_US[number - 1] if number else 0, BOUNDS_US[number]
                inside = (wanted - before) / count
                # Between two bounds evenly by ratio, as the bounds are; from 0 evenly by difference.
                us = low * (high / low) ** inside if low else high * inside
                return timedelta(microseconds=round(us))
            before += count
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Claims counted together. Each of them is in both histograms."""

    waited: Histogram = Histogram()
    """From when the job could have been claimed until it was."""
    ran: Histogram = Histogram()

    @property
    def count(self) -> int:
        return self.ran.count

    def __add__(self, other: Tally) -> Tally:
        return sum_of((self, other))


# A tally as plain numbers, as shared memory and those who add up know it: the two sums, then the buckets.
WAITED_AT, RAN_AT = 2, 2 + BUCKETS
NUMBERS = 2 + 2 * BUCKETS


def tally_of(numbers: Sequence[int]) -> Tally:
    """Of `NUMBERS` numbers."""
    return Tally(
        waited=Histogram(counts=tuple(numbers[WAITED_AT:RAN_AT]), sum_us=numbers[0]),
        ran=Histogram(counts=tuple(numbers[RAN_AT:NUMBERS]), sum_us=numbers[1]),
    )


def numbers_of(tally: Tally) -> tuple[int, ...]:
    """The way back."""
    return (tally.waited.sum_us, tally.ran.sum_us, *tally.waited.counts, *tally.ran.counts)


def numbers_of_one(*, waited_us: int, ran_us: int) -> list[int]:
    """Of a single claim."""
    numbers = [0] * NUMBERS
    numbers[0], numbers[1] = waited_us, ran_us
    numbers[WAITED_AT + bucket_of(waited_us)] = numbers[RAN_AT + bucket_of(ran_us)] = 1
    return numbers


def sum_of(tallies: Iterable[Tally]) -> Tally:
    """All of them together."""
    columns = list(zip(*map(numbers_of, tallies), strict=True))
    return tally_of([sum(column) for column in columns]) if columns else Tally()


def bucket_of(duration_us: int) -> int:
    """The number of its bucket."""
    return bisect_left(BOUNDS_US, duration_us)


def waited_us(job: Job) -> int:
    """How long a claimed job had waited, on storage's clock."""
    state = job.state
    since = state.enqueued_at if isinstance(state, Processing) else None
    return microseconds_of((job.started_at or job.created_at) - (since or job.created_at))


def microseconds_of(duration: timedelta) -> int:
    """From 0, as it is counted: a clock that was set back makes it no less."""
    us = duration.seconds * _US_OF_A_SECOND + duration.microseconds
    return max(0, min(duration.days * _US_OF_A_DAY + us, _MOST_US)) if duration.days else us


def ending_of(state: StateName | None, outcome: Outcome) -> Ending | None:
    """What a claim came to whose outcome was written, and whose job is in this state by it. None: it has
    been given back before it began, or the claim was lost."""
    match state:
        case StateName.SUCCEEDED:
            return Ending.SUCCEEDED
        case StateName.FAILED:
            return Ending.FAILED
        case StateName.DELETED:
            return Ending.CANCELLED
        case StateName.ENQUEUED | StateName.AWAITING_RETRY:
            if isinstance(outcome, Release):
                return None if outcome.not_begun else Ending.RELEASED
            return Ending.CRASHED if isinstance(outcome, Crash) else Ending.RETRIED
        case _:
            return None
