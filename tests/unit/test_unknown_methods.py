"""Jobs of methods that no server knows: they wait, and end failed after a time if one is set."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta

import pytest

from qml_mp import host
from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.server_info import ServerInfo
from qml_mp.core.state import StateName
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops import unknown_methods
from qml_mp.supervisor.loops.unknown_methods import UnknownMethodsLoop
from qml_mp.supervisor.run import Run
from tests.unit.hand_clock import HandClock

MakeLoop = Callable[[HandClock, timedelta | None], UnknownMethodsLoop]


@pytest.fixture
def loop_of(storage: Storage) -> Iterator[MakeLoop]:
    facts, source = AppFacts(methods=("known",)), NamedProgram(spec="an:app")
    with ExitStack() as stack:

        def make(clock: HandClock, timeout: timedelta | None) -> UnknownMethodsLoop:
            config = ServerConfig(unknown_method_timeout=timeout)
            run = Run(config, source, url=storage.url, facts=facts, clock=clock, rng=random.Random(1))
            stack.enter_context(closing(run.pool))
            return UnknownMethodsLoop(run)

        yield make


def server_that_knows(*methods: str) -> ServerInfo:
    now = datetime.now(UTC)
    return ServerInfo(
        id="other#1", name="other", hostname="here", process=host.identity(), worker_count=1, queues=(),
        started_at=now, last_heartbeat=now, methods=methods,
    )  # fmt: skip


def test_they_fail_when_nobody_has_known_the_method_for_the_time(
    storage: Storage, loop_of: MakeLoop, caplog: pytest.LogCaptureFixture
) -> None:
    clock = HandClock()
    loop = loop_of(clock, timedelta(seconds=1))
    for method in ("newone", "newone", "known"):
        storage.enqueue(Job.new(method))

    first = loop.tick(storage)
    clock.seconds = 0.5
    second = loop.tick(storage)
    assert (first, second) == (timedelta(seconds=1), timedelta(seconds=0.5))
    assert storage.job_counts()[StateName.ENQUEUED] == 3

    age_all(storage)
    clock.seconds = 1.0
    with caplog.at_level(logging.ERROR):
        assert loop.tick(storage) is not None  # there may be more
    assert storage.job_counts()[StateName.FAILED] == 2
    assert "2 jobs of method newone are failed: no server has known it for 1s" in caplog.text
    assert loop.tick(storage) is None


def test_a_server_that_knows_the_method_begins_the_time_anew(storage: Storage, loop_of: MakeLoop) -> None:
    clock = HandClock()
    loop = loop_of(clock, timedelta(seconds=1))
    storage.enqueue(Job.new("newone"))
    age_all(storage)
    loop.tick(storage)

    storage.register_server(server_that_knows("newone"))
    clock.seconds = 5.0
    loop.tick(storage)
    storage.deregister_server("other#1")
    back = loop.tick(storage)

    assert back == timedelta(seconds=1)
    assert storage.job_counts()[StateName.ENQUEUED] == 1


def test_of_more_than_are_counted_so_many_or_more_are_told(
    storage: Storage, loop_of: MakeLoop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown_methods, "_AMONG", 3)
    storage.enqueue_many(Job.new(method) for method in ("few", "few", "many", "many", "many", "many"))

    loop_of(HandClock(), None).tick(storage)

    assert "Jobs wait for method few (now 2), which no server knows" in caplog.text
    assert "Jobs wait for method many (now 3 or more), which no server knows" in caplog.text


def test_without_the_setting_they_wait_for_ever(storage: Storage, loop_of: MakeLoop) -> None:
    clock = HandClock()
    loop = loop_of(clock, None)
    storage.enqueue(Job.new("newone"))
    age_all(storage)

    ticks = []
    for _ in range(2):
        ticks.append(loop.tick(storage))
        clock.seconds += 1e9

    assert ticks == [None, None]
    assert storage.job_counts()[StateName.ENQUEUED] == 1


def age_all(storage: Storage) -> None:
    """As if they had waited for an hour."""
    with storage._db.transaction("a test") as transaction:
        transaction.run("UPDATE qml_jobs SET enqueued_at = enqueued_at - 3600000000")
