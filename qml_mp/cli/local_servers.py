"""Client: the servers of this machine, found by their rows in the registry, and signals to them; and those
elsewhere, which are asked through storage when they are named.

A signal goes through a descriptor of the process, opened before it is proved to be the one that registered:
a pid that was given to another process in the meantime is never signalled. Nor is one that would die of it,
as a program does that has the server in a thread of its own.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence

import click

from qml_mp import host
from qml_mp.cli.output import note
from qml_mp.core.acts import ActKind
from qml_mp.core.answers import NO_ANSWERS, Answers
from qml_mp.core.server_info import ServerInfo
from qml_mp.errors import StorageUnavailable
from qml_mp.host import handles_signal, is_alive
from qml_mp.printable import printable
from qml_mp.storage.store import Storage
from qml_mp.views.liveness import Standing, liveness_by_server

_LOOK_EVERY_S = 0.05


def chosen_servers(
    storage: Storage, names: Sequence[str], *, all_of_them: bool, command: ActKind
) -> list[ServerInfo]:
    """Those of this machine that are named (by name, id or pid), or all, or the only one. What is named and
    is not here may be elsewhere, and can be asked through storage.

    Raises `click.UsageError` when several here fit and `--all` was not given, as when they have one name, or
    when several elsewhere have the name, and `click.ClickException` that says what to do when there is none.
    """
    servers = storage.list_servers()
    liveness = liveness_by_server(storage, servers, now=storage.now())
    standings = {each.id: liveness[each.id].standing for each in servers}
    if names:
        found = []
        for name in dict.fromkeys(names):
            named = [each for each in servers if name in (each.id, each.name, str(each.process.pid))]
            here = [each for each in named if standings[each.id] is Standing.ALIVE]
            if len(here) > 1 and not all_of_them:
                raise click.UsageError(
                    f"{len(here)} servers here are called {name!r}: {', '.join(map(shown, here))}. "
                    "Name one by its id or pid, or take --all with the name."
                )
            far = [] if here else _elsewhere(name, named, standings, command=command)
            if not here and not far:
                raise click.ClickException(_why_none(name, named, standings, command=command))
            found += [each for each in here or far if each not in found]
        return found
    found = [each for each in servers if standings[each.id] is Standing.ALIVE]
    if not found:
        raise click.ClickException(
            # In quotes, behind which no @ of a server's name is taken for the end of a password.
            f"No server of {storage.display_url!r} runs on this machine. "
            + " ".join(_what_to_do(each, standings[each.id], command=command) for each in servers)
        )
    if len(found) > 1 and not all_of_them:
        raise click.UsageError(
            f"{len(found)} servers run here: {', '.join(map(shown, found))}. "
            "Name one by --server (name, id or pid), or take --all."
        )
    return found


def _elsewhere(
    name: str, named: Sequence[ServerInfo], standings: dict[str, Standing], *, command: ActKind
) -> list[ServerInfo]:
    """The one of these that runs elsewhere and can be asked, if there is one. A pid names none there."""
    far = [
        each
        for each in named
        if standings[each.id] is Standing.NOT_KNOWN and each.can(command) and name in (each.id, each.name)
    ]
    if len(far) > 1:
        raise click.UsageError(
            f"{len(far)} servers elsewhere are called {name!r}. Name one by its id: "
            + ", ".join(f"{printable(each.id)} on {printable(each.hostname)}" for each in far)
        )
    return far


def shown(server: ServerInfo) -> str:
    """ "web (pid 1234)"."""
    return printable(f"{server.name} (pid {server.process.pid})")


def note_other_folder(storage: Storage, server: ServerInfo, spec: str | None) -> None:
    """Say so when a server here imports this app from another folder, although this one has it as well: a
    process stays in the folder in which it was started, also where a symlink by which it was named leads to
    another one now."""
    here, pid = host.current_directory(), server.process.pid
    if spec is None or here is None or is_alive(server.process) is not True:
        return
    try:
        there = os.readlink(f"/proc/{pid}/cwd")
    except OSError:  # another user's, or a system without /proc
        return
    module = spec.partition(":")[0]
    if here == there or not _has_module(here, module):
        return
    told = storage.server_descriptions().get(server.id)  # a folder may have many modules that it does not run
    if told is not None and told.app.partition(":")[0] == module and _has_module(there, module):
        note(
            f"{shown(server)} imports {module} from {there}, in which it was started, and not from here "
            f"({here}). What is here a restart takes over, and no reload."
        )


class ServerEnded(click.ClickException):
    """A server that was there when it was looked for, and is no more."""

    def __init__(self, server: ServerInfo) -> None:
        super().__init__(f"The server {shown(server)} has just ended.")


class LocalServer:
    """The process of a registered server. `with`: its descriptor is held."""

    def __init__(self, info: ServerInfo) -> None:
        self.info = info
        self._pidfd = -1

    def __enter__(self) -> LocalServer:
        """Raises `ServerEnded` when the process is not proved to be the server's."""
        pid = self.info.process.pid
        try:
            if hasattr(os, "pidfd_open"):
                self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise ServerEnded(self.info) from None
        if is_alive(self.info.process) is not True:  # asked after the open, so the answer is of this process
            self._close()
            raise ServerEnded(self.info)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def send(self, number: signal.Signals) -> None:
        """Raises `ServerEnded`, and `click.ClickException` when it would not be heeded, or is not allowed."""
        pid = self.info.process.pid
        if handles_signal(pid, number) is False:
            raise click.ClickException(
                f"The server {shown(self.info)} runs inside a program that does not handle {number.name} "
                "and would end by it. Nothing was sent; let that program stop or restart its server."
            )
        try:
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(pid, number)
        except ProcessLookupError:
            raise ServerEnded(self.info) from None
        except PermissionError:
            raise click.ClickException(
                f"The server {shown(self.info)} belongs to another user; run this as that user, or as root."
            ) from None

    def has_ended(self, *, within_s: float = 0.0) -> bool:
        """Whether the process has ended, waited for at most so long."""
        if self._pidfd >= 0:
            return bool(select.select([self._pidfd], [], [], within_s)[0])
        deadline = time.monotonic() + within_s
        while is_alive(self.info.process, is_local=True) is not False:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOOK_EVERY_S)
        return True

    def row(self, storage: Storage) -> ServerInfo | None:
        """Its row as it is now, also when it goes on under another id; None: it has left the registry."""
        rows = (each for each in storage.list_servers() if each.process == self.info.process)
        return next(rows, None)

    def answers(self, storage: Storage) -> Answers:
        """What it has answered so far: nothing once it has left the registry, and while storage cannot be
        asked. Whoever waits for an answer rides that out, as the server does."""
        try:
            row = self.row(storage)
        except StorageUnavailable:
            return NO_ANSWERS
        return NO_ANSWERS if row is None else row.answers

    def _close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _why_none(name: str, named: Sequence[ServerInfo], standings: dict[str, Standing], *, command: str) -> str:
    if not named:
        return f"No server is called {name!r}; `qml-mp servers list` shows those that there are."
    return " ".join(_what_to_do(each, standings[each.id], command=command) for each in named)


def _what_to_do(server: ServerInfo, standing: Standing, *, command: str) -> str:
    if standing is Standing.DEAD:
        return f"{shown(server)} is dead: the next server on this machine gives back what it left."
    return (
        f"{shown(server)} runs on {printable(server.hostname)} in what cannot be seen from here (another "
        "machine or container, another user's processes, or a storage that this one was copied from): run "
        f"`qml-mp {command}` there."
    )


def _has_module(folder: str, module: str) -> bool:
    path = os.path.join(folder, *module.split("."))
    return os.path.exists(f"{path}.py") or os.path.isdir(path)
