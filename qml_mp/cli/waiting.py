"""Client: jobs that wait because no live server can run them, as `status` tells of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qml_mp.cli.snapshot import ServerView
from qml_mp.core.payload import JsonValue
from qml_mp.core.server_info import ServerInfo
from qml_mp.storage.values import MethodStats


def without_a_server(stats: Sequence[MethodStats], servers: Sequence[ServerView]) -> list[MethodStats]:
    """What no live server can run. Nothing when no server lives: then everything waits."""
    able = _able(servers)
    return [
        line
        for line in stats
        if able and not any(info.serves(line.queue) and info.knows(line.method) for info in able)
    ]


def waiting_to_json(line: MethodStats) -> dict[str, JsonValue]:
    """An entry of `waiting_methods` in the JSON of `status`."""
    return {"method": line.method, "queue": line.queue, "jobs": line.enqueued}


def waiting_in_words(waiting: Sequence[MethodStats], servers: Sequence[ServerView]) -> Iterator[str]:
    """One line per cause: a method that nobody knows, a queue that nobody serves, or both in one job."""
    able = _able(servers)
    methods: Counter[str] = Counter()
    queues: Counter[str] = Counter()
    pairs: list[MethodStats] = []
    for line in waiting:
        if not any(info.knows(line.method) for info in able):
            methods[line.method] += line.enqueued
        elif not any(info.serves(line.queue) for info in able):
            queues[line.queue] += line.enqueued
        else:
            pairs.append(line)
    for method, jobs in methods.items():
        yield f"{_jobs_wait(jobs)} for method {method}, which no live server knows"
    for queue, jobs in queues.items():
        yield f"{_jobs_wait(jobs)} in queue {queue}, which no live server serves"
    for line in pairs:
        yield (
            f"{_jobs_wait(line.enqueued)} for method {line.method}, which no live server of queue "
            f"{line.queue} knows"
        )


def _able(servers: Sequence[ServerView]) -> list[ServerInfo]:
    """Those that can run anything: alive, and not there for its loops alone."""
    return [
        server.info for server in servers if server.alive and (server.info.worker_count or server.workers)
    ]


def _jobs_wait(count: int) -> str:
    return "1 job waits" if count == 1 else f"{count} jobs wait"
