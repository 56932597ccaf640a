"""Client: what a shell is offered for a word that names something in the storage: a job, a method, a queue.

It must never disturb whoever types: no app is imported, an error offers nothing, and after a second the shell
gets what there is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem
from click.types import StringParamType

if TYPE_CHECKING:
    from qml_mp.storage.store import Storage

_PATIENCE_S = 1.0
_MOST_JOBS = 100


class Stored(StringParamType):
    """Text that names something in the storage."""

    def __init__(self, find: Callable[[Storage], Iterator[tuple[str, str]]]) -> None:
        self._find = find

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Those that begin so, with a word about each."""
        found: dict[str, str] = {}
        looking = threading.Thread(target=self._look, args=(ctx, found), daemon=True)
        looking.start()
        looking.join(_PATIENCE_S)
        given = ctx.params.get(param.name or "") or ()
        return [
            CompletionItem(name, help=about)
            for name, about in list(found.items())
            if name.startswith(incomplete) and (isinstance(given, str) or name not in given)
        ]

    def _look(self, ctx: click.Context, found: dict[str, str]) -> None:
        from qml_mp.cli.session import Session

        logging.disable()
        try:
            session = ctx.find_object(Session) or Session()
            with ctx.scope(cleanup=False):
                storage = session.existing_storage(may_import=False)
                for name, about in self._find(storage):
                    found.setdefault(name, about)
        except Exception:  # nothing is offered then, whatever it is
            pass


def _jobs(storage: Storage) -> Iterator[tuple[str, str]]:
    from qml_mp.storage.values import JobFilter

    for job in storage.list_jobs(JobFilter(), limit=_MOST_JOBS).jobs:
        yield job.id, f"{job.method}, {job.state_name}"


def _methods(storage: Storage) -> Iterator[tuple[str, str]]:
    for server in storage.list_servers():
        for method in server.methods or ():
            yield method, f"of {server.name}"
    for line in storage.method_stats():
        yield line.method, f"{line.enqueued} enqueued"


def _queues(storage: Storage) -> Iterator[tuple[str, str]]:
    for queue in storage.queue_stats():
        yield queue.name, f"{queue.enqueued} enqueued"
    for server in storage.list_servers():
        for name in server.queues:
            yield name, f"of {server.name}"


def _servers(storage: Storage) -> Iterator[tuple[str, str]]:
    for server in storage.list_servers():
        yield server.name, f"pid {server.process.pid} on {server.hostname}"


def _workers(storage: Storage) -> Iterator[tuple[str, str]]:
    names = {server.id: server.name for server in storage.list_servers()}
    for worker in storage.list_workers():
        if worker.server_id in names:
            yield f"{names[worker.server_id]}/{worker.number}", f"pid {worker.process.pid}"


def _templates(storage: Storage) -> Iterator[tuple[str, str]]:
    for template in storage.list_recurring_jobs():
        yield template.id, template.cron


BY_PARAMETER: Mapping[str, Stored] = MappingProxyType(
    {
        "job_id": Stored(_jobs),
        "job_ids": Stored(_jobs),
        "method": Stored(_methods),
        "queue": Stored(_queues),
        "name": Stored(_queues),
        "names": Stored(_servers),
        "server": Stored(_servers),
        "worker": Stored(_workers),
        "recurring_id": Stored(_templates),
    }
)
"""By the name of the parameter, in whichever command."""
