"""Worker: whether and when a failed attempt is followed by another. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeVar

from qml_mp.errors import ConfigurationError, shown
from qml_mp.field_docs import with_fields_in_doc
from qml_mp.units import Duration, parse_duration

ErrorFilter = tuple[type[BaseException] | str, ...]
"""Exceptions by type (subclasses included) or by name, bare ("KeyError") or full ("app.errors.Busy").
Two are not raised by code: "JobTimeout" is a time limit, "OutOfMemory" the limit `max_memory_hard`."""

_DEFAULT_ATTEMPTS = 5
_DEFAULT_DELAY = timedelta(seconds=1)
_DEFAULT_MAX_DELAY = timedelta(minutes=15)
_DEFAULT_JITTER = 0.25
_LONGEST_DELAY = timedelta(days=366)
_MOST_IN_GROUPS = 1000
_E = TypeVar("_E")


class RetryStrategy(StrEnum):
    """How the delay grows from one retry to the next."""

    NONE = "none"
    FIXED = "fixed"
    EXPONENTIAL = "exponential"
    LINEAR = "linear"


@with_fields_in_doc
@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """The judge of failed attempts. Without arguments: exponential, 5 attempts, from 1 s, doubled, at
    most 15 minutes, ±25 % jitter, on every exception.

    Build one with `none`, `fixed`, `exponential` or `linear`. Durations also accept seconds or text.
    Raises `ConfigurationError` that names the field.
    """

    strategy: RetryStrategy = RetryStrategy.EXPONENTIAL
    max_attempts: int = _DEFAULT_ATTEMPTS
    """Attempts in all, the first included. `max_retries` of a job, or of its function, takes its place."""
    delay: timedelta = _DEFAULT_DELAY
    """Before the first retry."""
    multiplier: float = 2.0
    """Exponential: what each further delay is multiplied by."""
    max_delay: timedelta = _DEFAULT_MAX_DELAY
    """No delay is longer, jitter included."""
    jitter: float = _DEFAULT_JITTER
    """Largest random share by which a delay is shortened or lengthened, 0 to 1."""
    retry_on: ErrorFilter = ()
    """Only these are retried; empty: all. An exception group is if it is one of them, or all in it are."""
    never_retry: ErrorFilter = ()
    """These are never retried, nor is a group with one of them in it, whatever `retry_on` says."""

    def __post_init__(self) -> None:
        for name in ("delay", "max_delay"):
            value = parse_duration(getattr(self, name), what=f"RetryPolicy.{name}")
            if value > _LONGEST_DELAY:
                raise _bad(name, value, f"at most {_LONGEST_DELAY.days} days")
            object.__setattr__(self, name, value)
        if self.delay > self.max_delay:
            raise _bad(
                "delay", self.delay, f"at most max_delay, which is {shown(self.max_delay)}: set that too"
            )
        object.__setattr__(self, "strategy", _strategy(self.strategy))
        for name in ("retry_on", "never_retry"):
            object.__setattr__(self, name, _error_filter(name, getattr(self, name)))
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            raise _bad("max_attempts", self.max_attempts, "a whole number of at least 1")
        if self.max_attempts < 1:
            raise _bad("max_attempts", self.max_attempts, "at least 1")
        if self.strategy is RetryStrategy.NONE:
            if self.max_attempts not in (1, _DEFAULT_ATTEMPTS):
                raise _bad("max_attempts", self.max_attempts, "1 where the strategy is none")
            object.__setattr__(self, "max_attempts", 1)
        if not _is_number(self.multiplier) or not 1 <= self.multiplier <= 1000:
            raise _bad("multiplier", self.multiplier, "a number from 1 to 1000")
        if not _is_number(self.jitter) or not 0 <= self.jitter <= 1:
            raise _bad("jitter", self.jitter, "a number from 0 to 1")

    @classmethod
    def none(cls) -> RetryPolicy:
        """One attempt. A job that sets `max_retries` is retried all the same, a second apart."""
        return cls(strategy=RetryStrategy.NONE, max_attempts=1)

    @classmethod
    def fixed(
        cls,
        delay: Duration = _DEFAULT_DELAY,
        *,
        max_attempts: int = _DEFAULT_ATTEMPTS,
        jitter: float = _DEFAULT_JITTER,
        retry_on: ErrorFilter = (),
        never_retry: ErrorFilter = (),
    ) -> RetryPolicy:
        """The same delay before every retry."""
        return cls(
            strategy=RetryStrategy.FIXED,
            max_attempts=max_attempts,
            delay=parse_duration(delay, what="RetryPolicy.delay"),
            max_delay=_LONGEST_DELAY,
            jitter=jitter,
            retry_on=retry_on,
            never_retry=never_retry,
        )

    @classmethod
    def exponential(
        cls,
        delay: Duration = _DEFAULT_DELAY,
        *,
        multiplier: float = 2.0,
        max_delay: Duration | None = None,
        max_attempts: int = _DEFAULT_ATTEMPTS,
        jitter: float = _DEFAULT_JITTER,
        retry_on: ErrorFilter = (),
        never_retry: ErrorFilter = (),
    ) -> RetryPolicy:
        """Each delay is `multiplier` times the one before, and at most `max_delay`: by default 15 minutes, or
        `delay` where that is longer."""
        first = parse_duration(delay, what="RetryPolicy.delay")
        return cls(
            strategy=RetryStrategy.EXPONENTIAL,
            max_attempts=max_attempts,
            delay=first,
            multiplier=multiplier,
            max_delay=_longest(max_delay, first),
            jitter=jitter,
            retry_on=retry_on,
            never_retry=never_retry,
        )

    @classmethod
    def linear(
        cls,
        delay: Duration = _DEFAULT_DELAY,
        *,
        max_delay: Duration | None = None,
        max_attempts: int = _DEFAULT_ATTEMPTS,
        jitter: float = _DEFAULT_JITTER,
        retry_on: ErrorFilter = (),
        never_retry: ErrorFilter = (),
    ) -> RetryPolicy:
        """The n-th retry comes after n times `delay`, and at most `max_delay`: by default 15 minutes, or
        `delay` where that is longer."""
        first = parse_duration(delay, what="RetryPolicy.delay")
        return cls(
            strategy=RetryStrategy.LINEAR,
            max_attempts=max_attempts,
            delay=first,
            max_delay=_longest(max_delay, first),
            jitter=jitter,
            retry_on=retry_on,
            never_retry=never_retry,
        )

    def decide(
        self, *, failures: int, error: BaseException | str, max_retries: int | None, rng: random.Random
    ) -> timedelta | None:
        """The delay before the next attempt; None: give up.

        `failures` counts this one too. `error` is the exception or, when only that is known, the
        name of its type. `max_retries` is the job's own, or its worker's (None: `max_attempts` holds).
        """
        if not self.retries_on(error):
            return None
        return self.next_delay(failures=failures, max_retries=max_retries, rng=rng)

    def retries_on(self, error: BaseException | str) -> bool:
        """Whether the lists allow another attempt after this error."""
        if self.never_retry and any(_matches(each, self.never_retry) for each in with_members(error)):
            return False
        return not self.retry_on or _all_match(error, self.retry_on)

    def attempts(self, *, max_retries: int | None) -> int:
        """Attempts in all, the first included, of a job with this `max_retries` of its own."""
        return self.max_attempts if max_retries is None else max_retries + 1

    def next_delay(self, *, failures: int, max_retries: int | None, rng: random.Random) -> timedelta | None:
        """`decide` without the lists: what attempts are left, and the delay before the next."""
        if failures >= self.attempts(max_retries=max_retries):
            return None
        longest_s = self.max_delay.total_seconds()
        jittered_s = min(self._base_delay_s(failures), longest_s) * (1 + self.jitter * rng.uniform(-1, 1))
        return timedelta(seconds=min(jittered_s, longest_s))

    def _base_delay_s(self, failures: int) -> float:
        delay_s = self.delay.total_seconds()
        match self.strategy:
            case RetryStrategy.NONE | RetryStrategy.FIXED:
                return delay_s
            case RetryStrategy.LINEAR:
                return delay_s * failures
            case RetryStrategy.EXPONENTIAL:
                try:
                    return delay_s * self.multiplier ** (failures - 1)
                except OverflowError:
                    return self.max_delay.total_seconds() if delay_s else 0.0


def check_policy(value: object, *, what: str) -> RetryPolicy | None:
    """Return the policy, or raise `ConfigurationError`, which says what to write instead of it."""
    if value is None or isinstance(value, RetryPolicy):
        return value
    instead = "RetryPolicy.exponential(max_attempts=5)"
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10_000:
        instead = f"RetryPolicy.exponential(max_attempts={value + 1}), or max_retries={value} beside it"
    raise ConfigurationError(f"{what} is {shown(value)}; it must be a RetryPolicy: write {what}={instead}.")


def type_name(error_type: type) -> str:
    """The name under which an exception is kept: as Python prints it, bare for built-in ones and ours.

    Nothing of the class's own is run, nor of its metaclass; a class may lack `__module__`."""
    name = _text_of(error_type, "__qualname__") or "?"
    module = _text_of(error_type, "__module__")
    return name if module in (None, "builtins", "__main__", "qml_mp.errors") else f"{module}.{name}"


def is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """`isinstance` by the type alone: it asks nothing of the value, whose `__class__` may be code."""
    return issubclass(type(value), kind)


def with_members(error: _E) -> list[_E | BaseException]:
    """The error and, of an exception group, what is in it, at any depth: what the tasks of an
    `asyncio.TaskGroup` raise is in one."""
    found: list[_E | BaseException] = [error]
    for each in found:  # which grows meanwhile; a job may have nested as many as it likes
        if len(found) < _MOST_IN_GROUPS:
            found += members_of(each)
    return found


def members_of(error: object) -> tuple[BaseException, ...]:
    """Of a group; asked of nothing that the class of the user's may have put in its place."""
    if not is_a(error, BaseExceptionGroup):
        return ()
    members: tuple[BaseException, ...] = vars(BaseExceptionGroup)["exceptions"].__get__(error)
    return members


def _text_of(kind: type, name: str) -> str | None:
    try:
        text = type.__dict__[name].__get__(kind)
    except AttributeError:
        return None
    return str.__str__(text) if is_a(text, str) else None


def _matches(error: BaseException | str, listed: ErrorFilter) -> bool:
    # The mro is compared, by identity, rather than isinstance asked: no metaclass of the user's runs here.
    types: tuple[type, ...] = ()
    if is_a(error, BaseException):
        types = type.__dict__["__mro__"].__get__(type(error))
    full = {type_name(kind) for kind in types} or {str(error)}
    names = full | {name.rpartition(".")[2] for name in full}
    places = {_place(kind) for kind in types}
    return any(
        entry in names
        if isinstance(entry, str)
        else any(entry is kind for kind in types)
        or (_place(entry) in places if types else type_name(entry) in full)
        for entry in listed
    )


def _place(kind: type) -> tuple[str | None, str | None]:
    """Where it is defined: that of a class whose module was imported twice is the same, and a class in
    `__main__` is not the built-in one of its name."""
    return _text_of(kind, "__module__"), _text_of(kind, "__qualname__")


def _all_match(error: BaseException | str, listed: ErrorFilter) -> bool:
    """Whether it is listed or, of a group that is not, everything in it."""
    left = [error]
    for each in left:  # which grows meanwhile
        if not _matches(each, listed):
            members = members_of(each)
            if not members or len(left) >= _MOST_IN_GROUPS:
                return False
            left += members
    return True


def _error_filter(name: str, value: object) -> ErrorFilter:
    entries = value if isinstance(value, list | tuple | set | frozenset) else (value,)
    for entry in entries:
        if not isinstance(entry, str) and not (isinstance(entry, type) and issubclass(entry, BaseException)):
            raise _bad(name, value, "exception types or their names")
    return tuple(entries)


def _longest(max_delay: Duration | None, first: timedelta) -> timedelta:
    if max_delay is None:
        return max(first, _DEFAULT_MAX_DELAY)
    return parse_duration(max_delay, what="RetryPolicy.max_delay")


def _strategy(value: Any) -> RetryStrategy:
    try:
        return RetryStrategy(value)
    except ValueError:
        raise _bad("strategy", value, f"one of {', '.join(RetryStrategy)}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bad(name: str, value: object, bound: str) -> ConfigurationError:
    return ConfigurationError(f"RetryPolicy.{name} is {shown(value)}; it must be {bound}.", field=name)
