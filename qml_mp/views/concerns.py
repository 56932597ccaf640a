"""Client and web process: what is wrong now, in sentences: the system as a whole, and single servers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qml_mp.host import is_alive
from qml_mp.views.liveness import Standing
from qml_mp.views.servers import ServerView, able_servers
from qml_mp.views.snapshot import Snapshot
from qml_mp.views.waiting import jobs_in_words, waiting_in_words, without_a_server


@dataclass(frozen=True, slots=True, kw_only=True)
class Concern:
    """Something that a person should know of."""

    text: str
    is_grave: bool
    """Whether work stands still by it; else it is only worth a look."""


def concerns(seen: Snapshot) -> list[Concern]:
    """What is wrong, the grave first."""
    found = [*_of_work(seen), *_of_servers(seen.servers), *_of_queues(seen)]
    return sorted(found, key=lambda concern: not concern.is_grave)


def problem_of(server: ServerView) -> str | None:
    """Why the server cannot do its work; None: nothing is known that keeps it."""
    who = name_of(server)
    if not server.alive:
        return f"{who} is {server.liveness}"
    if server.liveness.is_overdue:
        return f"{who} runs, and sends no heartbeats any more ({server.liveness.last_heard})"
    if server.info.worker_count and not ready_workers(server):
        return f"{who} has no worker that is ready" + (
            f": {server.info.trouble}" if server.info.trouble else ""
        )
    return None


def ready_workers(server: ServerView) -> int:
    """Workers register when they are ready. Those that cannot be looked up are taken at their word."""
    return sum(is_alive(worker.info.process) is not False for worker in server.workers)


def name_of(server: ServerView) -> str:
    """ "web (pid 1234)"."""
    return f"{server.info.name} (pid {server.info.process.pid})"


def _of_work(seen: Snapshot) -> Iterator[Concern]:
    waiting = without_a_server(seen.methods, seen.servers)
    for line in waiting_in_words(seen.methods, waiting, seen.servers, most=seen.most):
        yield Concern(text=f"{line[0].upper()}{line[1:]}.", is_grave=True)


def _of_servers(servers: Sequence[ServerView]) -> Iterator[Concern]:
    for server in servers:
        problem = problem_of(server)
        if problem is not None:
            left = server.liveness.standing is Standing.DEAD
            after = "; the next server on its machine gives back what it left" if left else ""
            yield Concern(text=f"Server {problem}{after}.", is_grave=not left)
        elif server.info.trouble is not None:
            yield Concern(text=f"Server {name_of(server)}: {server.info.trouble}", is_grave=True)
        if server.alive and server.info.paused:
            yield Concern(
                text=f"Server {name_of(server)} is paused: it claims nothing until it is resumed.",
                is_grave=False,
            )


def _of_queues(seen: Snapshot) -> Iterator[Concern]:
    """Those without a server are told with the jobs that wait."""
    has_servers = bool(able_servers(seen.servers))
    for queue in seen.queues:
        if queue.limit.paused and (queue.stats.enqueued or has_servers):
            told = jobs_in_words(queue.stats.enqueued, at_least=seen.has_more(queue))
            waits = f", and {told}" if queue.stats.enqueued else ""
            yield Concern(text=f"Queue {queue.stats.name} is paused{waits}.", is_grave=False)
