"""Tests: a supervisor that waits for the end of the others of its host."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp import host
from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.server_info import ServerInfo, WorkerInfo
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.values import Fetch
from qml_mp.supervisor.loops.peers import NeighbourLoop
from qml_mp.supervisor.recovery import sweep
from qml_mp.supervisor.recovery.neighbours import Neighbours
from qml_mp.supervisor.recovery.sweep import reclaim_from_dead_neighbours
from qml_mp.supervisor.run import Run
from qml_mp.supervisor.wait import wait_for

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NEVER = float("inf")


class Times:
    """The monotonic clock of a run; a test sets it."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Times:
    return Times()


@pytest.fixture
def neighbours(clock: Times) -> Iterator[Neighbours]:
    config = ServerConfig(orphan_grace=timedelta(seconds=5))
    run = Run(config, NamedProgram(spec="an:app"), url="memory://", facts=AppFacts(), clock=clock)  # type: ignore[arg-type]
    with closing(run.pool), closing(Neighbours(run)) as neighbours:
        yield neighbours


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that lives until it is killed, in a supervisor's place."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


other_process = process
"""In its worker's place."""


def server(pid: int, **changes: object) -> ServerInfo:
    info = ServerInfo(
        id=f"peer#{pid}", name="peer", hostname="here", process=host.identity(pid), worker_count=1,
        queues=("default",), started_at=NOW, last_heartbeat=NOW,
    )  # fmt: skip
    return replace(info, **changes)  # type: ignore[arg-type]


def test_the_end_of_one_is_seen_when_it_comes_and_its_workers_have_the_grace_from_then_on(
    neighbours: Neighbours, clock: Times, process: subprocess.Popen[bytes]
) -> None:
    peer = server(process.pid)
    neighbours.watch([peer])
    process.kill()
    assert wait_for(neighbours.fds(), until=NEVER)
    neighbours.turn()

    news = [neighbours.has_news]
    assert list(neighbours.fds()) == []
    neighbours.watch([peer])
    assert [*news, neighbours.has_news] == [True, False]
    assert neighbours.leaving() == {peer.id}
    clock.now += 5
    assert neighbours.leaving() == set()


def test_one_that_dies_while_the_dead_are_looked_for_leaves_its_workers_the_grace_too(
    clock: Times,
    process: subprocess.Popen[bytes],
    other_process: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(ServerConfig(), NamedProgram(spec="an:app"), url=f"sqlite:///{tmp_path / 'jobs.db'}",
              facts=AppFacts(), clock=clock)  # type: ignore[arg-type]  # fmt: skip
    peer = server(process.pid)
    worker = WorkerInfo(
        id="worker", server_id=peer.id, number=1, process=host.identity(other_process.pid), started_at=NOW
    )
    with closing(run.pool), closing(open_storage(run.url)) as storage, closing(Neighbours(run)) as neighbours:
        run.registration.register(storage)
        storage.register_server(peer)
        storage.register_worker(worker)
        leaving = neighbours.leaving

        def while_it_dies() -> set[str]:
            process.kill()
            process.wait()
            return leaving()

        monkeypatch.setattr(neighbours, "leaving", while_it_dies)
        loop = NeighbourLoop(run, judging=None, neighbours=neighbours)

        for _ in range(2):
            loop.tick(storage)
            neighbours.turn()

        assert other_process.poll() is None
        assert peer.id in {each.id for each in storage.list_servers()}
        assert leaving() == {peer.id}


@pytest.mark.parametrize("is_lasting", [False, True], ids=["killed", "cannot be killed"])
def test_a_worker_of_a_dead_one_that_registers_while_the_others_are_proved_dead_has_to_be_dead_too(
    is_lasting: bool,
    process: subprocess.Popen[bytes],
    other_process: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(
        ServerConfig(), NamedProgram(spec="an:app"), url=f"sqlite:///{tmp_path / 'jobs.db'}", facts=AppFacts()
    )
    peer = server(process.pid)
    worker = WorkerInfo(
        id="worker", server_id=peer.id, number=1, process=host.identity(other_process.pid), started_at=NOW
    )
    process.kill()
    process.wait()
    with closing(run.pool), closing(open_storage(run.url)) as storage, closing(open_storage(run.url)) as its:
        storage.register_server(peer)
        job_id = storage.enqueue(Job.new("m"))
        list_workers = storage.list_workers

        def while_it_registers() -> list[WorkerInfo]:
            found = list_workers()
            if not found:
                its.register_worker(worker)
                assert its.fetch_and_lock_job(
                    Fetch(worker_id=worker.id, server_id=peer.id, queues=(), registered=True)
                )
            return found

        monkeypatch.setattr(storage, "list_workers", while_it_registers)

        if is_lasting:
            monkeypatch.setattr(sweep, "kill_stranger", lambda _: None)
        reclaimed = reclaim_from_dead_neighbours(storage, run, [peer], proof_s=0.05 if is_lasting else 60)

        if is_lasting:
            assert (reclaimed.jobs, reclaimed.left, reclaimed.unkilled) == (0, {peer.id}, {peer.id})
            assert [claim.job.id for claim in storage.claims()] == [job_id]
        else:
            assert (reclaimed.jobs, reclaimed.left, reclaimed.unkilled) == (1, set(), set())
            assert other_process.wait() == -signal.SIGKILL
            assert (storage.list_servers(), list_workers()) == ([], [])


def test_workers_of_a_dead_one_that_may_not_be_killed_are_tried_with_growing_pauses_and_told_once(
    clock: Times,
    process: subprocess.Popen[bytes],
    other_process: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Run(ServerConfig(orphan_grace=timedelta()), NamedProgram(spec="an:app"),
              url=f"sqlite:///{tmp_path / 'jobs.db'}", facts=AppFacts(), clock=clock)  # type: ignore[arg-type]  # fmt: skip
    peer = server(process.pid)
    worker = WorkerInfo(
        id="worker", server_id=peer.id, number=1, process=host.identity(other_process.pid), started_at=NOW
    )
    process.kill()
    process.wait()
    with closing(run.pool), closing(open_storage(run.url)) as storage, closing(Neighbours(run)) as neighbours:
        run.registration.register(storage)
        storage.register_server(peer)
        storage.register_worker(worker)
        monkeypatch.setattr(sweep, "kill_stranger", lambda _: None)  # as signals do that may not be sent
        loop = NeighbourLoop(run, judging=None, neighbours=neighbours)

        with caplog.at_level(logging.WARNING):
            pauses = [loop.tick(storage) for _ in range(7)]

        assert pauses == [timedelta(seconds=each) for each in (1, 2, 4, 5, 5, 5, 5)]
        told = [line for line in caplog.messages if "Worker" in line or "worker pid" in line]
        assert len(told) == 2
        assert "Killing worker" in told[0]
        assert "another user's" in told[1]


def test_one_that_is_found_dead_has_the_grace_too_and_is_forgotten_with_its_row(
    neighbours: Neighbours, process: subprocess.Popen[bytes]
) -> None:
    peer = server(process.pid)
    process.kill()
    process.wait()

    neighbours.watch([peer])

    assert neighbours.leaving() == {peer.id}
    neighbours.watch([])
    assert neighbours.leaving() == set()


def test_neither_a_later_process_of_the_pid_nor_one_of_another_machine_is_waited_for(
    neighbours: Neighbours,
) -> None:
    own = host.identity()
    later = server(os.getpid(), id="later", process=replace(own, started_ticks=own.started_ticks - 1))
    elsewhere = server(os.getpid(), id="elsewhere", process=replace(own, host="another"))

    neighbours.watch([later, elsewhere])

    assert list(neighbours.fds()) == []
    assert neighbours.leaving() == {"later"}


def test_no_descriptor_is_kept_of_one_that_has_left_the_registry(
    neighbours: Neighbours, process: subprocess.Popen[bytes]
) -> None:
    neighbours.watch([server(process.pid)])
    (fd,) = neighbours.fds()

    neighbours.watch([])

    assert list(neighbours.fds()) == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
