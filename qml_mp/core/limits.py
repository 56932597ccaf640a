"""Anywhere, pure: what holds back the jobs of a queue or a method, and when the next of them may begin."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from qml_mp.errors import ConfigurationError, shown
from qml_mp.units import format_exactly, parse_duration

_INT32_MAX = 2**31 - 1
_RATE = re.compile(r"\s*(\d+)\s*/\s*(\S+)\s*")
_LONGEST_PERIOD = timedelta(days=366)
_BURST_PART = 7
_SMALL_STEP = timedelta(seconds=1)


class LimitKind(StrEnum):
    """What a limit is about."""

    QUEUE = "queue"
    METHOD = "method"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many jobs per period, as `Rate.parse("50/s")`, spread evenly over it.

    What could not begin in its time is made up for, by at most a seventh of `count` at once. So no period,
    wherever it begins, has more than `count` and a seventh. A claim uses up its turn, whatever becomes of the
    job.
    """

    count: int
    per: timedelta

    @classmethod
    def parse(cls, value: Rate | str, *, what: str = "rate") -> Rate:
        """Read "50/s", "100/m" or "10/30s"; a `Rate` is given back. Raises `ConfigurationError` that names
        `what` for anything else, and for a rate by which no job could ever begin or that cannot be stored."""
        rate = value if isinstance(value, Rate) else cls._read(value, what)
        if not rate._is_usable():
            raise _bad_rate(value, what)
        return rate

    @classmethod
    def _read(cls, value: str, what: str) -> Rate:
        match = _RATE.fullmatch(value) if isinstance(value, str) else None
        if match is None or not match[2][-1].isalpha():
            raise _bad_rate(value, what)
        period = f"1{match[2]}" if match[2].isalpha() else match[2]
        try:
            return cls(int(match[1]), parse_duration(period, what=what))
        except (ConfigurationError, ValueError):  # the latter for thousands of digits
            raise _bad_rate(value, what) from None

    def _is_usable(self) -> bool:
        return (
            isinstance(self.count, int)
            and not isinstance(self.count, bool)
            and 1 <= self.count <= _INT32_MAX
            and isinstance(self.per, timedelta)
            and self.per <= _LONGEST_PERIOD
            and self.per / self.count >= timedelta(microseconds=1)
        )

    def __str__(self) -> str:
        period = format_exactly(self.per)
        return f"{self.count}/{period.removeprefix('1') if period in ('1s', '1m', '1h', '1d') else period}"

    @property
    def interval(self) -> timedelta:
        """From one job to the next: rounded up, or a period would have one more at its edge."""
        return -(-self.per // self.count)

    def free(self, next_at: datetime | None, now: datetime) -> int:
        """How many may begin now. `next_at` is what `after_one` gave for the last of them; None: there was
        none."""
        turn = self._turn(next_at, now) - self._early
        return 0 if turn > now else (now - turn) // self.interval + 1

    def opens_in(self, next_at: datetime | None, now: datetime) -> timedelta:
        """In how long the next one may begin; zero: now."""
        return max(self._turn(next_at, now) - self._early - now, timedelta())

    def after_one(self, next_at: datetime | None, now: datetime) -> datetime:
        """The turn of the one after the one that begins now."""
        return self._turn(next_at, now) + self.interval

    @property
    def _early(self) -> timedelta:
        """How long before its turn a job may begin."""
        return self.count // _BURST_PART * self.interval

    def _turn(self, next_at: datetime | None, now: datetime) -> datetime:
        """A turn that is much later than any can be comes from a clock that was set back, or from another
        rate. One that is a little later is kept, or a small step of the clock would let more begin."""
        if next_at is None or next_at - now > self._early + self.interval + max(self.interval, _SMALL_STEP):
            return now
        return max(next_at, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What is said about the jobs of a queue or of a method."""

    kind: LimitKind
    name: str
    paused: bool = False
    """None is claimed."""
    max_running: int | None = None
    """So many run at a time, on all machines together."""
    rate: Rate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A limit and how far it is used."""

    limit: Limit
    running: int
    """Jobs that are Processing."""
    next_at: datetime | None
    """Of the rate."""
    now: datetime

    @property
    def free(self) -> int | None:
        """How many may begin now; None: any number."""
        limit, bounds = self.limit, []
        if limit.paused:
            return 0
        if limit.max_running is not None:
            bounds.append(max(limit.max_running - self.running, 0))
        if limit.rate is not None:
            bounds.append(limit.rate.free(self.next_at, self.now))
        return min(bounds, default=None)

    @property
    def next_in(self) -> timedelta | None:
        """In how long the rate lets one more begin than now; None: it is not the rate that they wait for."""
        limit = self.limit
        is_full = limit.max_running is not None and self.running >= limit.max_running
        if limit.rate is None or limit.paused or is_full:
            return None
        return limit.rate.opens_in(self.next_at, self.now) or limit.rate.interval


def check_max_running(value: int | None) -> int | None:
    """Return how many may run at a time, or raise `ConfigurationError` when that cannot be."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _INT32_MAX:
        raise ConfigurationError(
            f"max_running is {shown(value)}; it must be a whole number from 1 to {_INT32_MAX}, or None: no "
            "limit. `qml-mp queues pause NAME` stops a queue."
        )
    return value


def _bad_rate(value: object, what: str) -> ConfigurationError:
    return ConfigurationError(
        f'{what} is {shown(value)}; it must be a number of jobs per period, such as "50/s", "100/m", '
        '"1000/h" or "10/30s".'
    )
