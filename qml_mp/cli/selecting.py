"""Client: the options by which commands choose jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click

from qml_mp.cli.arguments import name_of, parse_instant, with_options
from qml_mp.core.state import StateName
from qml_mp.errors import QmlError
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from qml_mp.units import check_no_date, parse_duration

_Command = TypeVar("_Command", bound=Callable[..., Any])


def chooses(**selected: Any) -> bool:
    """Whether the options of `selecting` say anything; 0s does."""
    return any(value not in (None, "", ()) for value in selected.values())


def job_filter(
    storage: Storage,
    *,
    states: Sequence[str],
    since: timedelta | datetime | None,
    until: timedelta | datetime | None,
    **others: str | None,
) -> JobFilter:
    """What the options of `selecting` say. A duration counts back from the storage's clock."""
    since, until = (storage.now() - when if isinstance(when, timedelta) else when for when in (since, until))
    return JobFilter(states=tuple(map(StateName, states)), since=since, until=until, **others)


def selecting(states: Iterable[StateName] = StateName) -> Callable[[_Command], _Command]:
    """Decorator: `--state` (of these), `--queue`, `--method`, `--error`, `--since`, `--until` and
    `--kind`, for `job_filter` and `chooses`."""
    names = [str(state) for state in states]
    return with_options(
        click.option(
            "--state", "states", multiple=True, type=click.Choice(names), metavar="STATE",
            help=f"Only jobs in this state ({', '.join(names)}); may be repeated.",
        ),
        click.option("-q", "--queue", help="Only jobs of this queue."),
        click.option("--method", help="Only jobs of this method."),
        click.option("--error", metavar="TEXT", help="Only jobs whose newest error has it."),
        click.option(
            "--since", metavar="DURATION|TIME", callback=_as_since,
            help="Only jobs that ended since then, or wait since: 2h, 1d, 2030-01-31T09:00.",
        ),
        click.option(
            "--until", metavar="DURATION|TIME", callback=_as_since, help="Only jobs that did so until then.",
        ),
        click.option(
            "--kind", metavar="KIND", help="Only failures of this kind, as `jobs errors --json` names it.",
        ),
    )  # fmt: skip


def _as_since(
    _ctx: click.Context, parameter: click.Parameter, value: str | None
) -> timedelta | datetime | None:
    if value is None:
        return None
    name = name_of(parameter)
    check_no_date(value, what=name, as_date="a date as 2030-01-31")
    try:
        return parse_duration(value, what=name)
    except QmlError:
        return parse_instant(
            value, what=name, or_else="a duration such as 90s, 2h or 1d (36525d at most), or a time in "
        )
