"""Tests: the supervisor's look for jobs on behalf of its idle workers, and what it says of their memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from qml_mp import host
from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind, Rate
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.storage.values import Fetch, Heard
from qml_mp.supervisor.loops.peers import HeartbeatLoop
from qml_mp.supervisor.loops.poll import PollLoop
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.run import Run
from tests.storage.helpers import set_limit

MEBIBYTE = 1 << 20


class Pool(list[Any]):
    """Of workers that are idle or not; counts how often they are woken."""

    paused = False
    woken = 0

    def wake_idle(self, _jobs: int) -> None:
        self.woken += 1


@pytest.fixture
def run(storage: Storage) -> Iterator[Run]:
    run = Run(
        ServerConfig(queues=("mail",)),
        NamedProgram(spec="an:app"),
        url=storage.url,
        facts=AppFacts(methods=("send",)),
    )
    with closing(run.pool):
        run.pool = Pool([SimpleNamespace(is_idle=False), SimpleNamespace(is_idle=True)])  # type: ignore[assignment]
        yield run


def never() -> None:
    """The other loops hear of commits."""
    raise AssertionError("they were hastened")


def woken_by_a_look(run: Run, storage: Storage) -> bool:
    pool: Any = run.pool
    before = pool.woken
    PollLoop(run, is_listening=lambda: True, hasten_others=never).tick(storage)
    return bool(pool.woken > before)


def test_idle_workers_are_woken_for_a_job_that_they_can_run_and_for_no_other(
    run: Run, storage: Storage
) -> None:
    storage.enqueue(Job.new("unknown", queue="mail"))
    storage.enqueue(Job.new("send", queue="another"))
    assert not woken_by_a_look(run, storage)

    storage.enqueue(Job.new("send", queue="mail"))

    assert woken_by_a_look(run, storage)


def test_no_more_are_woken_than_a_limit_lets_begin_and_again_when_a_rate_does(
    run: Run, storage: Storage
) -> None:
    set_limit(storage, LimitKind.METHOD, "send", rate=Rate(1, timedelta(minutes=1)))
    storage.enqueue_many(Job.new("send", queue="mail") for _ in range(2))
    assert woken_by_a_look(run, storage)

    storage.fetch_and_lock_job(Fetch(worker_id="w", server_id="s", queues=()))

    assert not woken_by_a_look(run, storage)
    sooner = PollLoop(run, is_listening=lambda: True, hasten_others=lambda: None).tick(storage)
    assert sooner is not None
    assert timedelta(seconds=40) < sooner <= timedelta(minutes=1)


def test_nobody_is_woken_while_claims_are_paused(run: Run, storage: Storage) -> None:
    storage.enqueue(Job.new("send", queue="mail"))
    pool: Any = run.pool
    pool.paused = True

    assert not woken_by_a_look(run, storage)


def test_no_look_is_made_while_all_workers_are_busy(run: Run, storage: Storage) -> None:
    pool: Any = run.pool
    pool.pop()
    storage.close()

    storage_never_asked: Any = SimpleNamespace()
    PollLoop(run, is_listening=lambda: True, hasten_others=never).tick(storage_never_asked)


@pytest.mark.parametrize("why", ["busy", "paused"])
def test_a_look_that_fell_out_is_made_up_for_once_a_worker_can_take_a_job(
    run: Run, storage: Storage, why: str
) -> None:
    pool: Any = run.pool
    idle = pool[1]
    idle.is_idle, pool.paused = why != "busy", why == "paused"
    storage.enqueue(Job.new("send", queue="mail"))
    loop = PollLoop(run, is_listening=lambda: True, hasten_others=never)

    loop.run(storage)
    until_then = loop.due_at()
    idle.is_idle, pool.paused = True, False
    now = loop.due_at()
    loop.run(storage)

    assert now < until_then < loop.due_at()
    assert pool.woken == 1


@pytest.mark.parametrize("is_listening", [True, False])
def test_looks_are_rarer_while_commits_wake_the_server(
    run: Run, storage: Storage, is_listening: bool
) -> None:
    hastened: list[bool] = []
    loop = PollLoop(
        run, is_listening=lambda: is_listening, hasten_others=lambda: hastened.append(is_listening)
    )

    sooner = loop.tick(storage)

    assert (sooner or loop.interval) == (5 if is_listening else 1) * timedelta(seconds=1)
    assert hastened == ([] if is_listening else [False])


def test_a_heartbeat_tells_of_a_workers_memory_only_when_it_has_changed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[dict[str, int]] = []
    sizes = {1: 20 * MEBIBYTE, 2: 30 * MEBIBYTE}

    def heartbeat_server(_id: str, *, worker_rss: Mapping[str, int]) -> Heard:
        told.append(dict(worker_rss))
        return Heard(servers=1, is_asked=False)

    storage: Any = SimpleNamespace(
        heartbeat_server=heartbeat_server, now=run.clock.now, silent_servers=lambda **_: []
    )
    workers = [SimpleNamespace(worker_id=f"w{pid}", child=SimpleNamespace(pid=pid)) for pid in sizes]
    run.pool = Pool(workers)  # type: ignore[assignment]
    monkeypatch.setattr(host, "rss_bytes", sizes.get)
    loop = HeartbeatLoop(run, judging=Judging(run.config, on_one_machine=True))

    loop.tick(storage)
    loop.tick(storage)
    sizes[2] += MEBIBYTE
    loop.tick(storage)
    sizes[2] += MEBIBYTE - 1
    loop.tick(storage)

    assert told == [{"w1": 20 * MEBIBYTE, "w2": 30 * MEBIBYTE}, {}, {"w2": 31 * MEBIBYTE}, {}]
