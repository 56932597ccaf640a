"""Client: options and parameter types of the commands, and JSON and instants as a shell gives them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from qml_mp.core.job import check_job_id
from qml_mp.core.payload import JsonValue
from qml_mp.errors import ConfigurationError, InvalidJob
from qml_mp.units import parse_duration

_Command = TypeVar("_Command", bound=Callable[..., Any])


def with_options(*options: Callable[..., Any]) -> Callable[[_Command], _Command]:
    """Decorator: these options and arguments of click, in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def as_duration(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> timedelta | None:
    """Callback of an option: seconds, or text like "5m"."""
    return None if value is None else parse_duration(value, what=name_of(parameter))


def as_instant(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> datetime | None:
    """Callback of an option: ISO 8601, without an offset in this machine's zone; aware, in UTC."""
    return None if value is None else parse_instant(value, what=name_of(parameter), or_else="")


def as_json(_ctx: click.Context, parameter: click.Parameter, value: str | None) -> JsonValue:
    """Callback of an option: JSON."""
    return None if value is None else parse_json(value, what=name_of(parameter))


def as_job_ids(_ctx: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Callback of an argument: job ids, all of them checked before the first is used, each once."""
    return tuple(dict.fromkeys(check_job_id(job_id) for job_id in value))


def read_payload(option: str | None, pairs: Sequence[str]) -> JsonValue:
    """The payload of `--payload` (JSON, or "-" for stdin) or of key=value arguments; {} without either.

    Raises `InvalidJob` for what is not JSON, `click.UsageError` for what is no argument.
    """
    if option is not None and pairs:
        raise click.UsageError("Give the payload either as --payload or as key=value arguments, not both.")
    if option is not None:
        text = _stdin() if option == "-" else option
        return parse_json(text, what="The payload" if option != "-" else "The payload on stdin")
    payload: dict[str, JsonValue] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{pair!r} is no argument; write key=value, or pass --payload JSON.")
        if key in payload:
            raise click.UsageError(f"The argument {key!r} is given twice.")
        payload[key] = _value_of(value)
    return payload


def parse_instant(text: str, *, what: str, or_else: str) -> datetime:
    """Read an instant, as `as_instant`; raise `ConfigurationError` naming `what`. `or_else` tells in it what
    may be given instead."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigurationError(
            f"{what} is {text!r}; it must be {or_else}ISO 8601 such as 2030-01-31T09:00 (local time) "
            "or 2030-01-31T09:00+01:00."
        ) from None


def parse_json(text: str | bytes, *, what: str) -> JsonValue:
    """Read JSON; raise `InvalidJob` naming `what`. Whether it can be stored is checked by the job itself."""
    try:
        value: JsonValue = json.loads(text)
    except RecursionError:
        raise InvalidJob(f"{what} is nested too deep to be read; flatten it or pass a reference.") from None
    except ValueError as error:
        raise InvalidJob(
            f'{what} is not JSON: {error}. Quote it for the shell, e.g. \'{{"path": "a.png"}}\'.'
        ) from None
    return value


def _value_of(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text, parse_constant=_no_json)
    except RecursionError:
        raise InvalidJob("An argument's JSON is nested too deep to be read; flatten it.") from None
    except ValueError:
        return text
    return value


def _no_json(name: str) -> None:
    """NaN and Infinity, which Python would read as numbers."""
    raise ValueError(name)


def _stdin() -> bytes:
    return sys.stdin.buffer.read()


def name_of(parameter: click.Parameter) -> str:
    """As a person has written it, for errors."""
    return parameter.opts[-1]
