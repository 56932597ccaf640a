"""Client: what is asked of servers through storage, wherever they run; and who asks, for the audit."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import timedelta

import click

from qml_mp.cli.output import note, report
from qml_mp.core.acts import Act, ActKind, ActRequest, ActState, Asker
from qml_mp.core.server_info import ServerInfo
from qml_mp.errors import StorageError, StorageUnavailable
from qml_mp.host import user_at_host
from qml_mp.printable import printable, printable_lines
from qml_mp.storage.store import Storage
from qml_mp.views.liveness import liveness_by_server

_LOOK_EVERY_S = 0.1
_LOOK_RARELY_S = 0.5
_SOON_S = 5.0


def asker(where: str = "cli") -> Asker:
    """Who has called this command."""
    return Asker(who=user_at_host(), where=where)


def note_change(storage: Storage, what: str, subject: str, *, said: str | None = None) -> None:
    """Note in the audit what this command has just changed; a storage that refuses it is told of."""
    try:
        storage.audit(asker(), what, subject, said=said)
    except StorageError as error:
        note(f"this stands in no audit ({what} {subject}): {error}")


def likely_servers(storage: Storage) -> list[ServerInfo]:
    """Those whose processes are seen, or that were heard lately."""
    servers = storage.list_servers()
    liveness = liveness_by_server(storage, servers, now=storage.now())
    return [each for each in servers if liveness[each.id].is_likely]


def server_called(storage: Storage, name: str, kind: ActKind) -> ServerInfo:
    """The one of this name or id that can be asked that. Raises `click.ClickException` when there is none,
    and `click.UsageError` when several have the name."""
    servers = [each for each in likely_servers(storage) if name in (each.id, each.name)]
    if not servers:
        raise click.ClickException(
            f"No server that runs is called {name!r}; `qml-mp servers list` shows those that there are."
        )
    if len(servers) > 1:
        raise click.UsageError(
            f"{len(servers)} servers are called {name!r}. Name one by its id: "
            + ", ".join(f"{printable(each.id)} (on {printable(each.hostname)})" for each in servers)
        )
    (server,) = servers
    if not server.can(kind):
        raise click.ClickException(
            f"{called(server)} cannot be asked to {kind}: it runs an older version of qml-mp. Replace that "
            f"first, or use signals on {printable(server.hostname)}."
        )
    return server


def called(server: ServerInfo) -> str:
    """ "web on box2 (pid 12)"."""
    return printable(f"{server.name} on {server.hostname} (pid {server.process.pid})")


def ask(storage: Storage, request: ActRequest, *, wait: timedelta | None) -> Act:
    """Ask, and wait for the end for so long (None: not at all); the act as it is then."""
    act = storage.ask(request)
    return act if wait is None else await_act(storage, act, wait=wait)


def await_act(storage: Storage, act: Act, *, wait: timedelta) -> Act:
    """Wait for the end of what was asked for so long; the act as it was last seen."""
    began = time.monotonic()
    while not act.state.is_final:
        waited_s = time.monotonic() - began
        is_over = waited_s >= wait.total_seconds()  # it may have been answered while this process stood still
        if not is_over:
            time.sleep(_LOOK_EVERY_S if waited_s < _SOON_S else _LOOK_RARELY_S)
        with suppress(StorageUnavailable):  # no news: it is ridden out, as by the server
            act = storage.get_act(act.id) or act
        if is_over:
            break
    return act


def tell(who: str, act: Act, *, waited: bool = True) -> int:
    """Say what has become of it; the exit code: 0 when it is done, or nobody has waited."""
    if act.state is ActState.DONE or not (waited or act.state.is_final):
        report(f"{who}: {act.in_words if act.state is ActState.DONE else 'asked'}")
        return 0
    first, *more = printable_lines(act.in_words) or [""]
    so_far = "" if act.state.is_final else "; it goes on, and `qml-mp audit` tells of it"
    report(f"{who}: {first}{so_far}", err=True)
    for line in more:
        report(f"  {line}", err=True)
    return 1
