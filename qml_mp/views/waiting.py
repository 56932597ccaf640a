"""Client: jobs that wait because no live server can run them, as `status` tells of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qml_mp.core.payload import JsonValue
from qml_mp.storage.values import MethodStats
from qml_mp.views.servers import ServerView, able_servers


def without_a_server(stats: Sequence[MethodStats], servers: Sequence[ServerView]) -> list[MethodStats]:
    """What no live server can run. Nothing when no server lives: then everything waits."""
    able = able_servers(servers)
    return [
        line
        for line in stats
        if able and not any(info.serves(line.queue) and info.knows(line.method) for info in able)
    ]


def waiting_to_json(line: MethodStats) -> dict[str, JsonValue]:
    """An entry of `waiting_methods` in the JSON of `status`."""
    return {"method": line.method, "queue": line.queue, "jobs": line.enqueued}


def waiting_in_words(
    stats: Sequence[MethodStats], waiting: Sequence[MethodStats], servers: Sequence[ServerView]
) -> Iterator[str]:
    """One line per cause: no server at all, methods that nobody has, a queue that nobody serves, or both in
    one job. `stats` is all that waits, `waiting` what no live server can run."""
    able = able_servers(servers)
    if not able and stats:
        yield f"{jobs_in_words(sum(line.enqueued for line in stats))}, and no server is alive"
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
    if methods:
        names = ", ".join(sorted(methods))
        yield f"{jobs_in_words(methods.total())} for methods that no live server has: {names}"
    for queue, jobs in queues.items():
        yield f"queue {queue}: {_jobs(jobs)} and no server serves it"
    for line in pairs:
        of_queue = f"which no live server of queue {line.queue} has"
        yield f"{jobs_in_words(line.enqueued)} for method {line.method}, {of_queue}"


def jobs_in_words(count: int) -> str:
    """ "1 job waits"."""
    return f"{_jobs(count)} {'waits' if count == 1 else 'wait'}"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"
