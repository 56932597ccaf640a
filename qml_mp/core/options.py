"""Anywhere: what can be said about a job where it is declared or enqueued, each option once.

An option is one line here: its name and type, what is checked, and what it means. `@app.job`, `using`,
`make_job`, `Job.new` and the flags of `qml-mp enqueue` all come from that line. An option that the row
holds is also a field of `Job`, by the same name.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_type_hints

from qml_mp.core.payload import JsonValue, check_text, encode_json
from qml_mp.errors import InvalidJob, about_field, shown
from qml_mp.setting_kinds import check_queue_name
from qml_mp.units import LONGEST, Duration, format_duration, parse_duration

LAST_INSTANT = datetime(9999, 12, 30, tzinfo=UTC)
"""A job cannot be due later: a day before the end of what Python can hold, so that every zone can show it."""
_INT32_MAX = 2**31 - 1
_MAX_KEY_CHARS = 500
_LONGEST = format_duration(LONGEST)
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Option:
    """What is known of an option besides its name and type."""

    kind: type
    """What a job holds it as. Where that is a `timedelta`, users may write any `Duration`."""
    check: Callable[[Any], Any]
    """Returns the value, or raises `InvalidJob` or `ConfigurationError` when no job can have it."""
    meaning: str
    """One line, for docstrings and for the help of the command line."""


def check_priority(value: int) -> int:
    """Return the priority, or raise `InvalidJob` when it cannot be one."""
    return _whole("priority", value, -_INT32_MAX - 1, f"to {_INT32_MAX}, the higher the sooner")


def check_max_retries(value: int | None) -> int | None:
    """Return the retry budget, or raise `InvalidJob` when it cannot be one."""
    bound = f"(no retry) to {_INT32_MAX}, or None: the retry policy decides"
    return None if value is None else _whole("max_retries", value, 0, bound)


def check_max_crashes(value: int | None) -> int | None:
    """Return the crash budget, or raise `InvalidJob` when it cannot be one."""
    bound = f"(no second try after a crash) to {_INT32_MAX}"
    return None if value is None else _whole("max_crashes", value, 1, bound)


def check_timeout(value: timedelta | None) -> timedelta | None:
    """Return the time limit of one attempt, or raise `InvalidJob` when it cannot be one."""
    return None if value is None else _at_least_1ms("timeout", value, "or None: the server's limit")


def _unique_key(value: str | None) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= _MAX_KEY_CHARS:
        raise _bad("unique_key", value, f"text of 1 to {_MAX_KEY_CHARS} characters")
    return check_text(value, what="unique_key")


def _unique_for(value: timedelta | None) -> timedelta | None:
    return None if value is None else _at_least_1ms("unique_for", value, "or None")


def _on_conflict(value: str) -> str:
    if value not in ("keep", "replace"):
        raise _bad("on_conflict", value, '"keep" or "replace"')
    return value


def _metadata(value: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    if not isinstance(value, Mapping):
        raise _bad("metadata", value, "a mapping with text as its keys")
    own = dict(value)  # the caller may change his
    text = encode_json(own, what="metadata")
    is_flat = not any(isinstance(each, list | tuple | dict) for each in own.values())
    return own if is_flat else json.loads(text)


def check_at(value: datetime) -> datetime:
    """Return the instant in UTC, or raise `InvalidJob` when it is no aware datetime, or one too late."""
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise _bad("at", value, "an aware datetime, as datetime.now(UTC) + timedelta(hours=1)")
    with suppress(OverflowError):
        instant = value.astimezone(UTC)
        if instant <= LAST_INSTANT:
            return instant
    raise _bad("at", value, f"an instant that the calendar has in UTC, up to {LAST_INSTANT:%Y-%m-%d}")


def check_delay(value: timedelta) -> timedelta:
    """Return the delay, or raise `InvalidJob` when it cannot be one."""
    if not isinstance(value, timedelta) or not timedelta(0) <= value <= LONGEST:
        raise _bad("delay", value, f"a timedelta that is not negative, and at most {_LONGEST}")
    return value


def due_at(now: datetime, *, delay: timedelta | None, at: datetime | None) -> datetime | None:
    """When a new job is due; None: now. Raises `InvalidJob` for what no job can have."""
    if delay is not None:
        return now + check_delay(delay)
    return None if at is None else check_at(at)


class CommonOptions(TypedDict, total=False):
    """What can be said about all jobs of a function, and about a single one. None is as good as left out."""

    # fmt: off
    queue: Annotated[str | None, Option(
        str, check_queue_name, "The queue; 'default' unless the function has another.")]
    priority: Annotated[int | None, Option(
        int, check_priority, "Higher runs first; 0 unless the function has another.")]
    max_retries: Annotated[int | None, Option(
        int, check_max_retries, "Retries after the first attempt, 0: none; else the retry policy decides.")]
    max_crashes: Annotated[int | None, Option(
        int, check_max_crashes, "Crashes of its process after which it fails; else the server's limit.")]
    timeout: Annotated[Duration | None, Option(
        timedelta, check_timeout, "Limit of one attempt; else the server's.")]
    # fmt: on


class JobOptions(CommonOptions, total=False):
    """What can be said about a single job."""

    # fmt: off
    delay: Annotated[Duration | None, Option(
        timedelta, check_delay, "Run it so much later.")]
    at: Annotated[datetime | None, Option(
        datetime, check_at, "Run it at that time (an aware datetime, ISO 8601 in a shell).")]
    unique_key: Annotated[str | None, Option(
        str, _unique_key, "Write nothing when a job that has not ended has this key, whatever its method and "
        "queue: put the method's name into it.")]
    unique_for: Annotated[Duration | None, Option(
        timedelta, _unique_for, "Keep the key for so long from now on, also when the job ends before.")]
    on_conflict: Annotated[Literal["keep", "replace"] | None, Option(
        str, _on_conflict, '"replace" the job that has the key, unless a worker has it; else "keep" it.')]
    metadata: Annotated[Mapping[str, JsonValue] | None, Option(
        dict, _metadata, "A JSON object that is kept with the job.")]
    # fmt: on


class EnqueueOptions(JobOptions, total=False):
    """What can be said about a single job and about how its row is written."""

    # fmt: off
    conn: Annotated[object | None, Option(
        object, lambda conn: conn,
        "Your own sqlite3, psycopg or SQLAlchemy connection: the row joins its transaction.")]
    # fmt: on


def options_of(definition: type) -> Mapping[str, Option]:
    """The options that a `TypedDict` declares, by name."""
    hints = get_type_hints(definition, include_extras=True)
    return MappingProxyType({name: hint.__metadata__[0] for name, hint in hints.items()})


JOB_OPTIONS = options_of(JobOptions)
_ENQUEUE_OPTIONS = options_of(EnqueueOptions)


def check_given(given: Mapping[str, object], known: Mapping[str, Option]) -> None:
    """Raise `TypeError` for a name that is no option, `InvalidJob` for two of which a job can have one."""
    for name in given:
        if name not in known:
            raise TypeError(f"There is no option {name!r}; there are {', '.join(known)}.")
    if given.get("delay") is not None and given.get("at") is not None:
        raise InvalidJob("delay and at are both given; a job can have one of them.")


def read_options(given: Mapping[str, Any], known: Mapping[str, Option]) -> dict[str, Any]:
    """The options as a job holds them, each checked, without those that are None.

    Raises `TypeError` for an unknown name, `InvalidJob` or `ConfigurationError` for what no job can have.
    """
    check_given(given, known)
    read = {}
    for name, value in given.items():
        if value is None:
            continue
        is_duration = known[name].kind is timedelta
        with about_field(name):
            read[name] = known[name].check(parse_duration(value, what=name) if is_duration else value)
    return read


def read_job_options(given: JobOptions) -> dict[str, Any]:
    """What was said about a single job; as `read_options`."""
    return read_options(given, JOB_OPTIONS)


def pop_conn(given: EnqueueOptions) -> object | None:
    """Take the connection out of what is said where a job is enqueued: what stays are options of a job.
    As `check_given`, whose `TypeError` names all that can be said there."""
    check_given(given, _ENQUEUE_OPTIONS)
    return given.pop("conn", None)


def documented(definition: type) -> Callable[[_Function], _Function]:
    """Decorator: `help` and `inspect.signature` show the options that the function takes as `**options`."""

    def document(function: _Function) -> _Function:
        options = options_of(definition)
        written = inspect.signature(function)
        named = [each for each in written.parameters.values() if each.kind is not each.VAR_KEYWORD]
        taken = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=...) for name in options]
        function.__signature__ = written.replace(parameters=[*named, *taken])  # type: ignore[attr-defined]
        lines = [f"    {name}: {option.meaning}" for name, option in options.items()]
        function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Options:", *lines])
        return function

    return document


def _bad(name: str, value: object, bound: str) -> InvalidJob:
    return InvalidJob(f"{name} is {shown(value)}; it must be {bound}.")


def _at_least_1ms(name: str, value: timedelta, or_else: str) -> timedelta:
    if not isinstance(value, timedelta) or not timedelta(milliseconds=1) <= value <= LONGEST:
        raise _bad(name, value, f"a timedelta from 1ms to {_LONGEST}, {or_else}")
    return value


def _whole(name: str, value: int, low: int, bound: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= _INT32_MAX:
        raise _bad(name, value, f"a whole number from {low} {bound}")
    return value
