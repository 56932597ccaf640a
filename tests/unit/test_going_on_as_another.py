"""Tests: a server whose row is gone goes on under one new id, however often that row has to be tried."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.errors import StorageError
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.loop import Loop
from qml_mp.supervisor.loops.peers import HeartbeatLoop, NeighbourLoop
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.recovery.neighbours import Neighbours
from qml_mp.supervisor.run import Run

LOOPS: dict[str, Callable[[Run], Loop]] = {
    "heartbeat": lambda run: HeartbeatLoop(run, judging=Judging(run.config, on_one_machine=True)),
    "neighbour": lambda run: NeighbourLoop(run, judging=None, neighbours=Neighbours(run)),
}


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    with closing(open_storage(f"sqlite:///{tmp_path / 'jobs.db'}")) as storage:
        storage.migrate()
        yield storage


@pytest.fixture
def run(storage: Storage) -> Iterator[Run]:
    """Registered."""
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url=storage.url, facts=AppFacts())
    with closing(run.pool):
        run.registration.register(storage)
        yield run


@pytest.mark.parametrize("make", LOOPS.values(), ids=LOOPS)
def test_a_row_that_is_refused_is_tried_again_under_the_same_id_and_the_death_is_told_once(
    make: Callable[[Run], Loop], run: Run, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    loop, first_id = make(run), run.registration.id
    storage.reclaim_server(first_id, silent_for=None)

    tried = set()
    with closing(sqlite3.connect(storage.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON qml_servers BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
        for _ in range(3):
            with pytest.raises(StorageError):
                loop.tick(storage)
            tried.add(run.registration.id)
        other.execute("DROP TRIGGER refuse")
    loop.tick(storage)

    assert [each.id for each in storage.list_servers()] == [*tried] != [first_id]
    assert caplog.text.count("declared this server dead") == 1

    storage.reclaim_server(run.registration.id, silent_for=None)
    loop.tick(storage)

    assert caplog.text.count("declared this server dead") == 2
    assert [each.id for each in storage.list_servers()] not in ([first_id], [*tried])


def test_a_row_whose_reply_was_lost_is_seen_by_the_next_look(
    run: Run, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    for make in LOOPS.values():
        loop = make(run)
        run.registration.has_row = False
        loop.tick(storage)
        storage.reclaim_server(run.registration.id, silent_for=None)
        loop.tick(storage)

    assert caplog.text.count("declared this server dead") == 2
