"""Client and web process: jobs that wait because no live server can run them, as `status` tells of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from qml_mp.core.payload import JsonValue
from qml_mp.storage.values import MethodStats
from qml_mp.units import n_jobs
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
    stats: Sequence[MethodStats],
    waiting: Sequence[MethodStats],
    servers: Sequence[ServerView],
    *,
    most: int | None = None,
) -> Iterator[str]:
    """One line per cause: no server at all, methods that nobody has, a queue that nobody serves, or both in
    one job. `stats` is all that waits, `waiting` what no live server can run. `most`: no more than so many
    were counted of each method of a queue."""
    able = able_servers(servers)
    if not able and stats:
        told = jobs_in_words(sum(line.enqueued for line in stats), at_least=_is_cut(stats, most))
        yield f"{told}, and no server is alive"
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
        cut = _is_cut([line for line in waiting if line.method in methods], most)
        told = jobs_in_words(methods.total(), at_least=cut)
        yield f"{told} for methods that no live server has: {names}"
    for queue, jobs in queues.items():
        cut = _is_cut([line for line in waiting if line.queue == queue], most)
        yield f"queue {queue}: {_jobs(jobs, at_least=cut)} and no server serves it"
    for line in pairs:
        of_queue = f"which no live server of queue {line.queue} has"
        told = jobs_in_words(line.enqueued, at_least=_is_cut([line], most))
        yield f"{told} for method {line.method}, {of_queue}"


def jobs_in_words(count: int, *, at_least: bool) -> str:
    """ "1 job waits", "at least 1000 jobs wait"."""
    return f"{_jobs(count, at_least=at_least)} {'waits' if count == 1 else 'wait'}"


def _is_cut(lines: Sequence[MethodStats], most: int | None) -> bool:
    return most is not None and any(line.enqueued >= most for line in lines)


def _jobs(count: int, *, at_least: bool = False) -> str:
    return f"{'at least ' if at_least else ''}{n_jobs(count)}"
