"""Both ends of the ended outcomes: an outcome as the bytes that lie in shared memory, and the way back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from qml_mp.core.new_job import new_job_of, new_job_to_json
from qml_mp.core.outcome import (
    AttemptKind,
    Cancelled,
    Crash,
    ErrorInfo,
    Extras,
    Failure,
    Outcome,
    ProcessFacts,
    Release,
    Retry,
    Success,
    extras_of,
)
from qml_mp.core.progress import progress_of
from qml_mp.errors import InvalidJob

_MICROSECOND = timedelta(microseconds=1)


def is_plain_success(outcome: Outcome) -> bool:
    """Whether it has the short form, of which a reader has to be told."""
    return isinstance(outcome, Success) and outcome.not_stored is None and outcome.extras is None


def outcome_bytes(outcome: Outcome, *, is_plain: bool) -> bytes | None:
    """None: there is no text for it. A plain success has a form of its own, its result without its duration,
    because every job that is worth the speed ends with one."""
    try:
        if is_plain and isinstance(outcome, Success):
            return outcome.result_text().encode()
        extras = extras_of(outcome)
        if extras is not None and isinstance(outcome, Success | Retry | Failure):
            fields = asdict(replace(outcome, extras=None)) | {"extras": _extras_to_json(extras)}
        else:
            fields = asdict(outcome)
        fields.pop("encoded", None)  # the result a second time
        text = json.dumps(
            [type(outcome).__name__, fields], default=_plain, ensure_ascii=False, separators=(",", ":")
        )
        return text.encode("utf-8", "surrogatepass")  # as `json.loads` reads it
    except (InvalidJob, ValueError, TypeError, RecursionError):
        return None


def outcome_of(data: bytes, *, is_plain: bool, ran_us: int) -> Outcome | None:
    """The way back; None: a job has written here. `ran_us`: the duration of a plain success."""
    try:
        return _success(data, ran_us) if is_plain else _other(data)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _success(body: bytes, ran_us: int) -> Success:
    text = body.decode()
    return Success(result=json.loads(text), duration=_duration(ran_us), encoded=text)


def _other(body: bytes) -> Outcome:
    name, fields = json.loads(body)
    for field in _READ.keys() & fields.keys():
        if fields[field] is not None:
            fields[field] = _READ[field](fields[field])
    return _KINDS[name](**fields)


def _extras_to_json(extras: Extras) -> dict[str, Any]:
    return {
        "follow_ups": [new_job_to_json(job) for job in extras.follow_ups],
        "progress": extras.progress and extras.progress.to_json(),
    }


def _extras(fields: dict[str, Any]) -> Extras:
    return Extras(
        follow_ups=tuple(map(new_job_of, fields["follow_ups"])), progress=progress_of(fields["progress"])
    )


def _plain(value: object) -> object:
    if isinstance(value, timedelta):
        return value // _MICROSECOND
    raise TypeError(f"no outcome has a {type(value).__name__}")


def _duration(microseconds: int) -> timedelta:
    return timedelta(microseconds=microseconds)


_KINDS: Mapping[str, Callable[..., Outcome]] = MappingProxyType(
    {kind.__name__: kind for kind in (Success, Retry, Failure, Cancelled, Release, Crash)}
)
_READ: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "duration": _duration,
        "delay": _duration,
        "rerun_after": _duration,
        "kind": AttemptKind,
        "error": lambda fields: ErrorInfo(**fields),
        "process": lambda fields: ProcessFacts(**fields),
        "extras": _extras,
    }
)
"""How those fields of an outcome are read that JSON does not hold as they are; null is None."""
