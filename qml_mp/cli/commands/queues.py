"""Client: `qml-mp queues`: what waits in each, and what holds it back: paused, limits, rates."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

import click

from qml_mp.cli.asking import called, note_change
from qml_mp.cli.failure import sentence
from qml_mp.cli.fitting import fitted, terminal_width
from qml_mp.cli.output import age, json_option, print_json, print_table, say
from qml_mp.cli.session import Group, Session, pass_session
from qml_mp.cli.watching import show_once_or_watch, watch_option
from qml_mp.core.limits import Limit, LimitKind, Rate, check_max_running
from qml_mp.core.payload import JsonValue
from qml_mp.errors import AppImportError, ConfigurationError, shown
from qml_mp.setting_kinds import check_queue_name
from qml_mp.settings import DEFAULT_QUEUE
from qml_mp.storage.store import Storage
from qml_mp.units import in_seconds, is_whole_number
from qml_mp.views.queues import (
    QueueView,
    is_queue,
    limit_in_words,
    limit_of,
    limit_to_json,
    oldest_in_words,
    up_to,
    view_queues,
)
from qml_mp.views.servers import view_servers
from qml_mp.views.snapshot import Counting

_NO_LIMIT = "none"

force_option = click.option(
    "--force", is_flag=True, help="Also a queue of which nothing is known yet: no job, no server."
)


def print_queues(views: Sequence[QueueView], *, most: int | None = None) -> None:
    """Queues as a table. What a worker holds and has not begun stands apart from what runs. `most`: at most
    one more than so many jobs were counted of each."""
    columns: dict[str, Sequence[object]] = {
        "QUEUE": [view.stats.name for view in views],
        "ENQUEUED": [up_to(view.stats.enqueued, most) for view in views],
        "RUNNING": [view.stats.processing - view.stats.held for view in views],
        "HELD": [view.stats.held for view in views],
        "OLDEST WAITS": [oldest_in_words(view.stats) for view in views],
        "SERVERS": [view.servers or "none" for view in views],
        "LIMIT": [limit_in_words(view.limit) for view in views],
    }
    print_table(
        *fitted(
            columns, width=terminal_width(), drop=("HELD", "OLDEST WAITS"), shrink={"LIMIT": 6, "QUEUE": 8}
        )
    )


@click.group(cls=Group)
def queues() -> None:
    """List queues, pause and resume them, limit what runs."""


@queues.command(name="list")
@watch_option
@json_option
@pass_session
def list_queues(session: Session, watch: timedelta | None, as_json: bool) -> None:
    """List the queues that hold jobs which have not ended, or that are paused or limited.

    Of each stands there how many live servers take its jobs.
    """
    storage = session.existing_storage()
    counting = Counting()

    def show() -> None:
        servers = view_servers(storage)
        views, most = counting.counted(lambda among: (view_queues(storage, servers, among=among), among))
        if as_json:
            for view in views:
                print_json({**view.to_json(), **({} if most is None else {"counted_up_to": most})})
        else:
            print_queues(views, most=most)

    show_once_or_watch(show, watch, as_json=as_json)


@queues.command(name="limits")
@json_option
@pass_session
def list_limits(session: Session, as_json: bool) -> None:
    """List the limits of queues and of methods (`@app.job(max_running=, rate=)`)."""
    standings = session.existing_storage().standings()
    if as_json:
        for each in standings:
            about: dict[str, JsonValue] = {"kind": str(each.limit.kind), "name": each.limit.name}
            now = {"processing": each.running, "next_in_s": in_seconds(each.next_in)}
            print_json({**about, **limit_to_json(each.limit), **now})
        return
    columns: dict[str, Sequence[object]] = {
        "OF": [each.limit.kind for each in standings],
        "NAME": [each.limit.name for each in standings],
        "LIMIT": [limit_in_words(each.limit) for each in standings],
        "PROCESSING": [each.running for each in standings],
        "NEXT IN": [age(each.next_in) for each in standings],
    }
    print_table(*fitted(columns, width=terminal_width(), drop=("NEXT IN",), shrink={"NAME": 12, "LIMIT": 6}))


@queues.command()
@click.argument("name")
@force_option
@pass_session
def pause(session: Session, name: str, force: bool) -> None:
    """Have no server claim jobs of a queue, until it is resumed. Jobs that run go on."""
    storage = session.existing_storage()
    _check_queue(session, storage, name, force=force)
    storage.set_paused(name, True)
    note_change(storage, "pause queue", name)
    say(f"{name} is paused; `qml-mp queues resume {shlex.quote(name)}` ends it")


@queues.command()
@click.argument("name")
@pass_session
def resume(session: Session, name: str) -> None:
    """End the pause of a queue."""
    storage = session.existing_storage()
    if name not in {each.limit.name for each in storage.standings() if is_queue(each) and each.limit.paused}:
        _check_known(session, storage, name, has_force=False)
        say(f"{name} was not paused")
        return
    storage.set_paused(name, False)
    note_change(storage, "resume queue", name)
    say(f"{name} is resumed")


@queues.command()
@click.argument("name")
@click.argument("max_running", metavar="[N|none]", required=False)
@click.option("--rate", metavar="RATE|none", help="Most jobs that begin per period, e.g. 50/s, 100/m.")
@click.option(
    "--method", "of_method", is_flag=True, help="NAME is a method that the code has no more; only with none."
)
@force_option
@pass_session
def limit(
    session: Session, name: str, max_running: str | None, rate: str | None, of_method: bool, force: bool
) -> None:
    """Let at most N jobs of a queue run at a time, or begin per period, on all machines together; `none` ends
    the one, `--rate none` the other. E.g.: queues limit images 3 --rate 100/m

    Limits of a method are the code's to say. Those of one that was removed or renamed stay until this ends
    them: queues limit NAME none --method
    """
    if of_method:
        if max_running != _NO_LIMIT or rate is not None:
            raise click.UsageError(
                "Limits of a method are the code's to say (@app.job(max_running=, rate=)). Of one that the "
                "code has no more, `queues limit NAME none --method` ends them."
            )
        _end_limits_of_method(session.existing_storage(), name, force)
        return
    if max_running is None and rate is None:
        raise click.UsageError("Say how many may run at a time (3, or none), --rate, or both.")
    number = None if max_running in (None, _NO_LIMIT) else _number(max_running)
    read_rate = None if rate in (None, _NO_LIMIT) else Rate.parse(rate, what="--rate")
    storage = session.existing_storage()
    _check_queue(session, storage, name, force=force)
    before = limit_of(storage, name)
    rate_alone = before.rate if before.max_running is None else None
    if rate_alone is not None and max_running == _NO_LIMIT and rate is None:
        say(f"{name} has no limit of jobs at a time; `--rate none` ends that of {rate_alone}")
        return
    given: dict[str, Any] = {} if max_running is None else {"max_running": number}
    if rate is not None:
        given["rate"] = read_rate
    limited = replace(before, **given)  # not read again: nothing may fail between the change and its note
    storage.limit(limited, only=list(given))
    told = limit_in_words(limited) or "no limit"
    note_change(storage, "limit queue", name, said=told)
    say(f"{name}: {told}")


def _end_limits_of_method(storage: Storage, name: str, force: bool) -> None:
    """Refused while a server may have declared them, as it would not do so again before its next start."""
    limited = {each.limit.name for each in storage.standings() if each.limit.kind is LimitKind.METHOD}
    if name not in limited:
        known = f"Limited are {', '.join(sorted(limited)[:10])}." if limited else "None is."
        raise ConfigurationError(f"No method {name!r} is limited. {known}")
    if not force:
        for server in storage.list_servers():
            if server.methods is None or name in server.methods:
                raise ConfigurationError(
                    f"{called(server)} knows the method {name!r}, and its code says how that is limited. "
                    "With --force the limits end all the same, until a server with it is started or reloaded."
                )
    storage.limit(Limit(kind=LimitKind.METHOD, name=name))
    note_change(storage, "limit method", name, said="no limit")
    say(f"{name}: no limit")


def _number(text: str | None) -> int | None:
    if text is None or not is_whole_number(text):
        raise ConfigurationError(f"N is {shown(text)}; it must be a whole number from 1, or none.")
    return check_max_running(int(text))


def _check_queue(session: Session, storage: Storage, name: str, *, force: bool) -> None:
    """Raise unless it can be a queue and, without `force`, is known as one. A name that ours cannot have is
    that of a queue only where another program has put jobs into it."""
    try:
        check_queue_name(name)
    except ConfigurationError:
        if name in _all_names(storage):
            return
        raise
    if not force:
        _check_known(session, storage, name)


def _all_names(storage: Storage) -> set[str]:
    """Of the queues that hold jobs or are limited, in as far as those are counted in time."""
    views = Counting().counted(lambda among: view_queues(storage, among=among))
    return {view.stats.name for view in views}


def _check_known(session: Session, storage: Storage, name: str, *, has_force: bool = True) -> None:
    """Raise unless a job, a server, the app or a limit names the queue: a slip of the pen would do nothing,
    and nobody would see it. `has_force`: whether the command takes --force."""
    known = {DEFAULT_QUEUE, *(queue for server in storage.list_servers() for queue in server.queues)}
    known.update(view.stats.name for view in view_queues(storage, among=1))
    if name in known:
        return
    known.update(_all_names(storage))  # also one whose jobs are for later
    if name in known:
        return
    try:
        facts = session.facts()
    except AppImportError as error:
        raise AppImportError(
            f"{sentence(str(error))} It was to say whether it serves a queue {name!r}, as no job waits in "
            "one and no server does." + (" With --force it is not asked." if has_force else "")
        ) from error.__cause__
    known.update(() if facts is None else facts.queues)
    if name in known:
        return
    alike = get_close_matches(name, known, n=1)
    hint = f"Did you mean {alike[0]!r}?" if alike else f"Known are {', '.join(sorted(known)[:10])}."
    raise ConfigurationError(
        f"No job waits in a queue {name!r}, and no server or app serves it. {hint}"
        + (" With --force it is taken all the same." if has_force else "")
    )
