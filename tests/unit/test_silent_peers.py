"""Tests: what a server makes of the heartbeats of its peers while the clock of storage is set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp import host
from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.values import Fetch
from qml_mp.supervisor.loops.peers import HeartbeatLoop
from qml_mp.supervisor.recovery.judging import Judging
from qml_mp.supervisor.run import Run
from tests.unit.set_clock import SetClock

pytestmark = pytest.mark.fault(88)

PEER, WORKER = "peer#1", "peer#1:worker:1.1"
UNSEEN = ProcessIdentity(host="elsewhere", pid=5, started_ticks=5)


class Pool(list[Any]):
    """Without workers."""

    paused = False

    def wake_idle(self, *_: object) -> None:
        """Nobody sleeps."""


class Pair:
    """A server that judges, and its peer, which runs a job."""

    def __init__(
        self, path: Path, config: ServerConfig, *, peer: ProcessIdentity, on_one_machine: bool
    ) -> None:
        self.clock = SetClock()
        self.storage = open_storage(f"sqlite:///{path}", clock=self.clock)
        self.peers_storage = open_storage(f"sqlite:///{path}", clock=self.clock)
        program = NamedProgram(spec="an:app")
        self.run = Run(config, program, url="unused", facts=AppFacts(methods=("m",)), clock=self.clock)
        self.run.pool.close()
        self.run.pool = Pool()  # type: ignore[assignment]
        judging = Judging(config, on_one_machine=on_one_machine)
        self.beat_s = judging.beat.total_seconds()
        self.loop = HeartbeatLoop(self.run, judging=judging)
        for server_id, process in ((self.run.registration.id, host.identity()), (PEER, peer)):
            self.storage.register_server(self._server(server_id, process))
        self.storage.register_worker(
            WorkerInfo(id=WORKER, server_id=PEER, number=1, process=peer, started_at=self.clock.wall)
        )
        self.job_id = self.storage.enqueue(Job.new("m"))
        fetch = Fetch(worker_id=WORKER, server_id=PEER, queues=(), registered=True)
        assert self.storage.fetch_and_lock_job(fetch)

    def both_beat_for(self, seconds: float) -> None:
        """The peer three quarters of a beat after the judge; in the end it is the judge's turn."""
        for _ in range(int(seconds / self.beat_s)):
            self.loop.tick(self.storage)
            self.clock.passes(self.beat_s * 0.75)
            assert self.peer_beats()
            self.clock.passes(self.beat_s * 0.25)

    def peer_beats(self) -> bool:
        return self.peers_storage.heartbeat_server(PEER, worker_rss={}) is not None

    def is_taken_over(self) -> bool:
        """Whether the peer was declared dead."""
        job = self.storage.get(self.job_id)
        assert job is not None
        gone = PEER not in {server.id for server in self.storage.list_servers()}
        assert gone is (job.state_name is StateName.ENQUEUED)
        return gone

    def close(self) -> None:
        self.storage.close()
        self.peers_storage.close()

    def _server(self, server_id: str, process: ProcessIdentity) -> ServerInfo:
        return ServerInfo(
            id=server_id, name="s", hostname="h", process=process, worker_count=1, queues=(),
            started_at=self.clock.wall, last_heartbeat=self.clock.wall, heartbeat_enabled=True,
        )  # fmt: skip


MakePair = Callable[..., Pair]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[MakePair]:
    with ExitStack() as stack:

        def make(peer: ProcessIdentity = UNSEEN, *, on_one_machine: bool = True, **settings: Any) -> Pair:
            config = ServerConfig(**settings)
            one = Pair(tmp_path / "jobs.db", config, peer=peer, on_one_machine=on_one_machine)
            return stack.enter_context(closing(one))

        yield make


@pytest.mark.parametrize("back_s", [1.5, 5.0, 3600.0])
@pytest.mark.parametrize("on_one_machine", [True, False])
def test_a_step_back_of_the_clock_declares_no_peer_dead_that_beats(
    pair: MakePair, on_one_machine: bool, back_s: float
) -> None:
    one = pair(on_one_machine=on_one_machine)
    one.both_beat_for(120)

    one.clock.is_set(timedelta(seconds=-back_s))
    one.both_beat_for(120)

    assert not one.is_taken_over()


def test_a_step_ahead_declares_no_peer_dead_that_beats(pair: MakePair) -> None:
    one = pair()
    one.both_beat_for(120)

    for _ in range(3):
        one.clock.is_set(timedelta(hours=1))
        one.both_beat_for(70)

    assert not one.is_taken_over()
