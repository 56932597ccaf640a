"""Client: `qml-mp reload`, `stop` and `stacks`: what signals do, with an answer. A server elsewhere is asked
through storage."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

import click

from qml_mp.cli.asking import ask, asker, await_act, called, note_change, tell
from qml_mp.cli.failure import exit_code_of, in_words
from qml_mp.cli.local_servers import LocalServer, ServerEnded, chosen_servers, note_other_folder, shown
from qml_mp.cli.output import json_option, note, print_json, report, say
from qml_mp.cli.session import Command, Session, pass_session
from qml_mp.cli.waiting_options import no_wait_option, wait_option
from qml_mp.core.acts import Act, ActKind, ActRequest, ActState
from qml_mp.core.answers import ReloadAnswer, ReloadState, StacksAnswer, WorkerStack
from qml_mp.core.server_info import ServerInfo
from qml_mp.errors import StorageError
from qml_mp.host import is_alive
from qml_mp.printable import printable_lines
from qml_mp.storage.store import Storage
from qml_mp.units import format_duration, n_workers

_LOOK_EVERY_S = 0.1
_ANSWERS_WITHIN_S = 10.0
_LEAVES_AFTER_ITS_ROW_S = 5.0
_CANNOT_BOOT = 3
_FAR_STACKS_WITHIN = timedelta(seconds=45)
_SIGNAL = "by a signal"
_T = TypeVar("_T")


def _which(command: Callable[..., Any]) -> Callable[..., Any]:
    every = click.option(
        "--all",
        "all_of_them",
        is_flag=True,
        help="Every server of this machine; with --server every one of that name.",
    )
    named = click.option(
        "--server",
        "names",
        multiple=True,
        metavar="NAME|ID|PID",
        help="Which, also on other machines; may be given several times.",
    )
    return named(every(command))


@click.command(cls=Command)
@_which
@no_wait_option
@wait_option("10m", "How long to wait for the jobs that are running now.")
@pass_session
def reload(
    session: Session, names: tuple[str, ...], all_of_them: bool, no_wait: bool, timeout: timedelta
) -> int:
    """Have servers take over new code (SIGHUP), and tell what became of it.

    Workers are replaced one by one, each after its job. Code that does not import replaces nobody:
    the reason is printed, and the exit code is 3. It is 1 when they are not done in time.
    """
    storage = session.existing_storage()
    servers = chosen_servers(storage, names, all_of_them=all_of_them, command=ActKind.RELOAD)
    within = None if no_wait else timeout
    spec = session.named_app()
    for info in servers:
        note_other_folder(storage, info, spec)
    return max(_each(servers, lambda info: _reload(storage, info, within=within)))


@click.command(cls=Command)
@_which
@click.option("--now", is_flag=True, help="Kill what runs, and give its jobs back.")
@no_wait_option
@wait_option("5m", "How long to wait for the end.")
@pass_session
def stop(
    session: Session,
    names: tuple[str, ...],
    all_of_them: bool,
    now: bool,
    no_wait: bool,
    timeout: timedelta,
) -> int:
    """Stop servers (SIGTERM, with --now SIGQUIT), and wait until they have ended.

    Running jobs have the server's shutdown timeout. A server that stops already is only waited for,
    unless --now is given. The exit code is 1 when one still runs after the time given here.
    """
    storage = session.existing_storage()
    deadline = time.monotonic() + timeout.total_seconds()
    servers = chosen_servers(storage, names, all_of_them=all_of_them, command=ActKind.STOP)
    with ExitStack() as held:  # all of them are told before one is waited for
        asked = _each(servers, lambda info: _tell_to_stop(storage, info, held, at_once=now))
        codes = [0]
        for info, told in zip(servers, asked, strict=True):
            match told:
                case int():
                    codes.append(told)
                case Act() if no_wait:
                    codes.append(tell(called(info), told, waited=False))
                case LocalServer() if no_wait:
                    report(f"{shown(info)}: asked")
                case Act():
                    left = timedelta(seconds=max(0.0, deadline - time.monotonic()))
                    codes.append(tell(called(info), await_act(storage, told, wait=left)))
                case LocalServer() if _await_end(told, storage, until=deadline):
                    report(f"{shown(info)}: stopped")
                case _:
                    report(
                        f"{shown(info)}: still runs after {format_duration(timeout)}; --now ends it at once"
                    )
                    codes.append(1)
        return max(codes)


@click.command(cls=Command)
@_which
@json_option
@pass_session
def stacks(session: Session, names: tuple[str, ...], all_of_them: bool, as_json: bool) -> int:
    """Print the Python stack of every worker of a server (SIGUSR1)."""
    storage = session.existing_storage()
    servers = chosen_servers(storage, names, all_of_them=all_of_them, command=ActKind.STACKS)
    return max(_each(servers, lambda info: _stacks(storage, info, as_json=as_json)))


def _each(servers: Sequence[ServerInfo], act: Callable[[ServerInfo], _T | int]) -> list[_T | int]:
    """What it comes to for each. Of several, one that has ended or that refuses, and a storage that does not
    answer for it, are told, and are its exit code: they keep nothing from the others."""
    came_to = list[_T | int]()
    for info in servers:
        try:
            came_to.append(act(info))
        except (click.ClickException, StorageError) as refused:
            if len(servers) == 1:
                raise
            note(in_words(refused))
            came_to.append(exit_code_of(refused))
    return came_to


def _reload(storage: Storage, info: ServerInfo, *, within: timedelta | None) -> int:
    """Have it reload, and say what became of it unless `within` is None; the exit code."""
    if is_alive(info.process) is None:
        act = ask(storage, _asked(ActKind.RELOAD, info), wait=within)
        code = tell(called(info), act, waited=within is not None)
        return _CANNOT_BOOT if act.state is ActState.FAILED else code
    with LocalServer(info) as server:
        asked_at = time.monotonic()
        server.send(signal.SIGHUP)
        note_change(storage, ActKind.RELOAD, info.id, said=_SIGNAL)
        if within is None:
            report(f"{shown(info)}: asked")
            return 0
        answer = _await_reload(server, storage, since=asked_at, within=within)
        if answer is None:
            return _tell_of_no_answer(info, has_ended=server.has_ended())
        return _tell_reload(info, answer, within=within)


def _tell_to_stop(
    storage: Storage, info: ServerInfo, held: ExitStack, *, at_once: bool
) -> LocalServer | Act | int:
    """What to wait for; the exit code, when there is nothing, as it has ended."""
    if is_alive(info.process) is None:
        return ask(storage, replace(_asked(ActKind.STOP, info), at_once=at_once), wait=None)
    try:
        server = held.enter_context(LocalServer(info))
        if info.answers.stops and not at_once:
            return server  # a second SIGTERM would kill the jobs that it lets end
        server.send(signal.SIGQUIT if at_once else signal.SIGTERM)
    except ServerEnded:
        report(f"{shown(info)}: has ended already")
        return 0
    note_change(storage, ActKind.STOP, info.id, said=_SIGNAL)
    return server


def _stacks(storage: Storage, info: ServerInfo, *, as_json: bool) -> int:
    """Print them; the exit code."""
    if is_alive(info.process) is None:
        act = ask(storage, _asked(ActKind.STACKS, info), wait=_FAR_STACKS_WITHIN)
        if act.state is not ActState.DONE:
            return tell(called(info), act)
        told: Sequence[WorkerStack] | None = act.stacks
    else:
        told = _stacks_here(storage, info)
    for each in told or ():
        _tell_stack(info, each, as_json=as_json)
    return 1 if told is None else 0


def _stacks_here(storage: Storage, info: ServerInfo) -> Sequence[WorkerStack] | None:
    """None, which is told: no answer came."""
    with LocalServer(info) as server:
        asked_at = time.monotonic()
        server.send(signal.SIGUSR1)
        answer = _await_stacks(server, storage, since=asked_at)
    if answer is not None:
        return answer.workers
    report(
        f"{shown(info)}: no answer within {_ANSWERS_WITHIN_S:g}s; what there is stands in its log", err=True
    )
    return None


def _tell_stack(info: ServerInfo, each: WorkerStack, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {"server_id": info.id, "number": each.number, "pid": each.pid, "method": each.method,
             "stack": each.stack}
        )  # fmt: skip
        return
    say(f"{info.name}, worker {each.number} (pid {each.pid}, {each.method or 'idle'}):")
    for line in printable_lines(each.in_words):
        click.echo(f"  {line}")


def _asked(kind: ActKind, info: ServerInfo) -> ActRequest:
    return ActRequest(kind=kind, server_id=info.id, by=asker())


def _await_reload(
    server: LocalServer, storage: Storage, *, since: float, within: timedelta
) -> ReloadAnswer | None:
    """The newest answer to what was asked then; None: none came, or the server has ended. That it answers at
    all depends on no job, so it has time for that, however short the time for its jobs is."""
    deadline = time.monotonic() + within.total_seconds()
    answers_by = max(deadline, time.monotonic() + _ANSWERS_WITHIN_S)
    answer: ReloadAnswer | None = None
    while not server.has_ended(within_s=_LOOK_EVERY_S):
        newest = server.answers(storage).reload
        if newest is not None and newest.began_at >= since:
            answer = newest
        is_over = time.monotonic() >= (answers_by if answer is None else deadline)
        if is_over or (answer is not None and answer.is_final):
            return answer
    return None


def _tell_of_no_answer(info: ServerInfo, *, has_ended: bool) -> int:
    """Say which of the two it was; the exit code."""
    what = "ended before it was done" if has_ended else "no answer yet"
    report(f"{shown(info)}: {what}; see its log", err=True)
    return 1


def _tell_reload(info: ServerInfo, answer: ReloadAnswer, *, within: timedelta) -> int:
    """Say what became of it; the exit code."""
    who = shown(info)
    match answer.state:
        case ReloadState.DONE:
            report(f"{who}: {n_workers(answer.replaced)} replaced{answer.code.caveat}")
            return 0
        case ReloadState.REFUSED | ReloadState.FAILED:
            stay = answer.workers - answer.replaced
            kept = "the workers stay as they are" if not answer.workers else f"{n_workers(stay)} not replaced"
            report(f"{who}: {kept}.", err=True)
            for line in printable_lines(answer.why or ""):
                report(f"  {line}", err=True)
            return _CANNOT_BOOT
        case ReloadState.LOOKING:
            report(
                f"{who}: the new code is still being imported after {format_duration(within)}; no worker was "
                "replaced so far, and it goes on: see its log",
                err=True,
            )
            return 1
        case ReloadState.REPLACING:
            report(
                f"{who}: {answer.replaced} of {n_workers(answer.workers)} replaced after "
                f"{format_duration(within)}; it goes on, each after its job",
                err=True,
            )
            return 1


def _await_end(server: LocalServer, storage: Storage, *, until: float) -> bool:
    """Whether the server has ended. In a program of its user's that goes on, it has left the registry: a
    storage that does not answer, or goes with its server, tells nothing of that."""
    while not server.has_ended(within_s=_LOOK_EVERY_S):
        if _has_left(server, storage):
            server.has_ended(within_s=_LEAVES_AFTER_ITS_ROW_S)
            return True
        if time.monotonic() >= until:
            return server.has_ended()
    return True


def _has_left(server: LocalServer, storage: Storage) -> bool:
    try:
        return server.row(storage) is None
    except StorageError:
        return False


def _await_stacks(server: LocalServer, storage: Storage, *, since: float) -> StacksAnswer | None:
    deadline = time.monotonic() + _ANSWERS_WITHIN_S
    is_over = False
    while not (is_over or server.has_ended(within_s=_LOOK_EVERY_S)):
        is_over = time.monotonic() >= deadline  # it may have answered while this process stood still
        answer = server.answers(storage).stacks
        if answer is not None and answer.began_at >= since:
            return answer
    return None
