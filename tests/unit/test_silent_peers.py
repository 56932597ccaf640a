"""Tests: what a server makes of the heartbeats of its peers while the clock of storage is set."""

from __future__ import annotations

import logging
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp import host
from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.server_description import ServerDescription, ToldSetting
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.core.state import StateName
from qml_mp.errors import StorageUnavailable
from qml_mp.settings import ServerConfig
from qml_mp.storage.open import open_storage
from qml_mp.storage.values import Fetch, Retention
from qml_mp.supervisor.loops.peers import HeartbeatLoop, NeighbourLoop
from qml_mp.supervisor.membership import _recover
from qml_mp.supervisor.recovery.judging import Judging, Silences
from qml_mp.supervisor.recovery.sweep import read_clock, release_stranded_jobs
from qml_mp.supervisor.run import Run
from tests.storage_rows import change_server
from tests.unit.set_clock import SetClock

pytestmark = pytest.mark.fault(88)

PEER, WORKER = "peer#1", "peer#1:worker:1.1"
UNSEEN = ProcessIdentity(host="elsewhere", pid=5, started_ticks=5)
HOUR = timedelta(hours=1)
SHORT = {"dead_server_timeout": timedelta(seconds=8), "heartbeat_interval": timedelta(seconds=1)}


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

    def judge_beats_for(self, seconds: float) -> None:
        """Alone."""
        until = self.clock.seconds + seconds
        while self.clock.seconds < until:
            sooner = self.loop.tick(self.storage)
            wait_s = self.beat_s if sooner is None else min(self.beat_s, sooner.total_seconds())
            self.clock.passes(max(0.01, wait_s))

    def judge_beats_with_a_peer_that_does_so_rarely(self, times: int, *, every_s: float) -> None:
        """The peer in the end, and is registered each time."""
        for _ in range(times):
            self.judge_beats_for(every_s)
            assert self.peer_beats()

    def peer_tells(self, *, dead_server_timeout: str) -> None:
        """It may beat as rarely as that allows."""
        setting = ToldSetting(name="dead_server_timeout", value=dead_server_timeout, source="the code")
        assert self.storage.describe_server(PEER, ServerDescription(settings=(setting,)))

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


@pytest.fixture
def sleeper() -> Iterator[ProcessIdentity]:
    """A process of this host that lives, and whom anybody may kill."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield host.identity(process.pid)
        process.kill()


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


@pytest.mark.parametrize("back_s", [1.5, 3600.0])
def test_a_step_back_of_the_clock_ends_no_worker_of_a_peer_on_this_host_that_beats(
    pair: MakePair, sleeper: ProcessIdentity, back_s: float
) -> None:
    one = pair(sleeper)
    one.both_beat_for(120)

    one.clock.is_set(timedelta(seconds=-back_s))
    one.both_beat_for(120)

    assert not one.is_taken_over()
    assert host.is_alive(sleeper)


def test_a_heartbeat_that_comes_in_while_this_server_looks_is_no_silence(
    pair: MakePair, sleeper: ProcessIdentity
) -> None:
    one = pair(sleeper)
    one.both_beat_for(120)

    def peer_beats() -> None:
        one.clock.passes(0.001)
        assert one.peer_beats()

    one.clock.looks = 0
    one.loop.tick(one.storage)
    last_of_a_tick, one.clock.looks = one.clock.looks, 0
    one.clock.after_look = (last_of_a_tick, peer_beats)
    one.loop.tick(one.storage)

    assert not one.is_taken_over()
    assert host.is_alive(sleeper)


@pytest.mark.parametrize("on_one_machine", [True, False])
@pytest.mark.parametrize("back_s", [1.5, 30.0, 3600.0])
def test_a_peer_that_is_dead_when_the_clock_is_set_back_is_taken_over_in_the_end(
    pair: MakePair, on_one_machine: bool, back_s: float
) -> None:
    one = pair(on_one_machine=on_one_machine)
    one.both_beat_for(120)

    one.clock.is_set(timedelta(seconds=-back_s))
    one.judge_beats_for(59)
    assert not one.is_taken_over()

    one.judge_beats_for(70)
    assert one.is_taken_over()


@pytest.mark.parametrize("back_s", [0.0, 20.0, 95.0, 3600.0])
def test_a_server_that_was_stopped_with_its_peer_while_the_clock_was_set_back_takes_nothing_from_it(
    pair: MakePair, back_s: float
) -> None:
    one = pair()
    one.both_beat_for(120)

    one.clock.passes(100)
    one.clock.is_set(timedelta(seconds=-back_s))
    one.judge_beats_for(10)
    one.both_beat_for(120)

    assert not one.is_taken_over()


def test_a_step_ahead_declares_no_peer_dead_that_beats(pair: MakePair) -> None:
    one = pair()
    one.both_beat_for(120)

    for _ in range(3):
        one.clock.is_set(timedelta(hours=1))
        one.both_beat_for(70)

    assert not one.is_taken_over()


@pytest.mark.fault(8)
@pytest.mark.parametrize("on_one_machine", [True, False])
@pytest.mark.parametrize(("interval_s", "timeout_s"), [(10, 60), (30, 60), (4, 8)])
def test_an_outage_of_storage_has_no_peer_declared_dead_that_beats_again_after_it(
    pair: MakePair, on_one_machine: bool, interval_s: float, timeout_s: float
) -> None:
    one = pair(
        on_one_machine=on_one_machine,
        heartbeat_interval=timedelta(seconds=interval_s),
        dead_server_timeout=timedelta(seconds=timeout_s),
    )
    for outage_s in (timeout_s * part / 8 for part in range(1, 8)):
        one.both_beat_for(2 * timeout_s)

        assert one.peer_beats()
        one.clock.passes(one.beat_s * 0.99)
        one.loop.tick(one.storage)
        one.clock.passes(outage_s)
        one.judge_beats_for(1.5)  # so long may the peer's pause between two tries be

        assert not one.is_taken_over()


def test_a_server_without_heartbeats_takes_no_job_of_a_peer_whose_heartbeat_lies_in_the_future(
    pair: MakePair,
) -> None:
    one = pair(enable_heartbeat=False, stale_processing_after=timedelta(seconds=5))
    loop = NeighbourLoop(one.run, judging=None, neighbours=NoNeighbours())  # type: ignore[arg-type]
    one.clock.passes(7200)
    assert one.peer_beats()
    one.clock.is_set(-HOUR)

    loop.tick(one.storage)
    one.clock.passes(30)
    loop.tick(one.storage)
    assert not has_been_given_back(one)

    for _ in range(2):
        one.clock.passes(40)  # it is dead: that one stays the newest
        loop.tick(one.storage)
    assert has_been_given_back(one)


@pytest.mark.fault(8)
@pytest.mark.parametrize("peer_beats_after_s", [0.0, 1.5, 10.0])
def test_a_server_without_heartbeats_takes_no_job_of_a_peer_that_beats_again_after_an_outage(
    pair: MakePair, peer_beats_after_s: float
) -> None:
    one = pair(enable_heartbeat=False, stale_processing_after=timedelta(seconds=5))
    loop = NeighbourLoop(one.run, judging=None, neighbours=NoNeighbours())  # type: ignore[arg-type]
    loop.tick(one.storage)

    one.clock.passes(120)
    loop.tick(one.storage)
    one.clock.passes(peer_beats_after_s)
    loop.tick(one.storage)
    assert one.peer_beats()
    one.clock.passes(30)
    loop.tick(one.storage)
    assert not has_been_given_back(one)

    for passes_s in (31, 11):  # it is dead now: silent for a minute, and two looks so far apart are too few
        one.clock.passes(passes_s)
        loop.tick(one.storage)
    assert not has_been_given_back(one)
    one.clock.passes(1)
    loop.tick(one.storage)
    assert has_been_given_back(one)


def test_a_server_without_heartbeats_that_starts_takes_no_job_of_a_silent_peer_at_its_first_look(
    pair: MakePair,
) -> None:
    one = pair(enable_heartbeat=False, stale_processing_after=timedelta(seconds=5))
    one.clock.passes(120)
    reading = read_clock(one.storage, one.run)

    assert release_stranded_jobs(one.storage, one.run, reading, Silences(), spare_registered=False) == 0
    assert not has_been_given_back(one)


@pytest.mark.fault(49)
@pytest.mark.parametrize("enable_heartbeat", [True, False])
@pytest.mark.parametrize("looks_for_s", [20, 120])
def test_a_step_ahead_makes_no_job_of_a_peer_without_heartbeats_older(
    pair: MakePair, enable_heartbeat: bool, looks_for_s: int
) -> None:
    one = pair(enable_heartbeat=enable_heartbeat)
    change_server(one.storage, PEER, heartbeat_enabled=0)
    judge_looks = looks_of(one, enable_heartbeat=enable_heartbeat)

    judge_looks(looks_for_s)
    one.clock.is_set(HOUR)
    judge_looks(170)
    assert not has_been_given_back(one)

    judge_looks(240)
    assert has_been_given_back(one)


@pytest.mark.fault(49)
@pytest.mark.parametrize("enable_heartbeat", [True, False])
def test_a_server_that_starts_behind_a_step_ahead_finds_no_job_of_a_peer_without_heartbeats_older(
    pair: MakePair, enable_heartbeat: bool
) -> None:
    one = pair(enable_heartbeat=enable_heartbeat)
    change_server(one.storage, PEER, heartbeat_enabled=0)
    one.clock.passes(10)
    one.clock.is_set(HOUR)

    _recover(one.storage, one.run)
    assert not has_been_given_back(one)

    judge_looks = looks_of(one, enable_heartbeat=enable_heartbeat)
    judge_looks(295)
    assert not has_been_given_back(one)

    judge_looks(60)
    assert has_been_given_back(one)


@pytest.mark.fault(8)
@pytest.mark.parametrize("is_seen", [True, False])
def test_a_peer_that_has_told_a_longer_timeout_is_taken_over_after_that(
    pair: MakePair, sleeper: ProcessIdentity, is_seen: bool
) -> None:
    one = pair(sleeper if is_seen else UNSEEN, on_one_machine=False, **SHORT)
    one.peer_tells(dead_server_timeout="1m")
    one.judge_beats_with_a_peer_that_does_so_rarely(12, every_s=10)

    one.judge_beats_for(59)
    assert not one.is_taken_over()
    assert host.is_alive(sleeper)

    one.judge_beats_for(30)
    assert one.is_taken_over()


@pytest.mark.fault(8)
def test_a_peer_that_has_told_a_longer_timeout_and_slept_as_long_with_its_judge_keeps_its_jobs(
    pair: MakePair,
) -> None:
    one = pair(on_one_machine=False, **SHORT)
    one.peer_tells(dead_server_timeout="1m")
    one.judge_beats_with_a_peer_that_does_so_rarely(12, every_s=10)

    one.clock.passes(70)
    one.judge_beats_for(15)

    assert one.peer_beats()


def test_on_one_machine_a_peer_outlives_a_timeout_that_is_shorter_than_its_pauses(pair: MakePair) -> None:
    one = pair(dead_server_timeout=timedelta(seconds=1.5), heartbeat_interval=timedelta(seconds=0.5))
    one.peer_tells(dead_server_timeout="1m")

    one.judge_beats_with_a_peer_that_does_so_rarely(60, every_s=2)

    one.judge_beats_for(65)
    assert one.is_taken_over()


@pytest.mark.fault(8)
def test_a_server_without_heartbeats_judges_a_peer_by_the_longer_timeout_that_this_has_told(
    pair: MakePair,
) -> None:
    one = pair(enable_heartbeat=False, stale_processing_after=timedelta(seconds=5), **SHORT)
    one.peer_tells(dead_server_timeout="2m")
    loop = NeighbourLoop(one.run, judging=None, neighbours=NoNeighbours())  # type: ignore[arg-type]

    for passes_s in (19, 100, 2, 21):  # silent for two minutes at the third look, and until 20 + 2 s later
        one.clock.passes(passes_s)
        loop.tick(one.storage)
        assert not has_been_given_back(one)
    one.clock.passes(1)
    loop.tick(one.storage)
    assert has_been_given_back(one)


def test_a_server_that_was_stopped_in_the_middle_of_a_heartbeat_may_have_counted_as_dead(
    pair: MakePair,
) -> None:
    one = pair(dead_server_timeout=timedelta(seconds=10), heartbeat_interval=timedelta(seconds=1))
    may_have = one.run.registration.may_have_counted_as_dead

    one.loop.tick(one.storage)
    one.clock.passes(3)
    # Neither the time before it begins nor the time that it takes is long enough; peers saw both.
    one.clock.after_look = one.clock.looks + 1, lambda: one.clock.passes(8)
    one.loop.tick(one.storage)
    assert may_have()
    one.clock.passes(1)
    one.loop.tick(one.storage)
    assert may_have()  # a worker that was killed meanwhile may take a moment to end
    one.clock.passes(5)
    one.loop.tick(one.storage)
    assert not may_have()


def test_a_server_that_was_stopped_before_its_first_heartbeat_may_have_counted_as_dead(
    pair: MakePair,
) -> None:
    one = pair(dead_server_timeout=timedelta(seconds=10), heartbeat_interval=timedelta(seconds=1))
    one.run.registration.register(one.storage)
    may_have = one.run.registration.may_have_counted_as_dead

    assert not may_have()
    one.clock.passes(11)
    assert may_have()
    one.loop.tick(one.storage)
    assert may_have()
    one.clock.passes(6)
    one.loop.tick(one.storage)
    assert not may_have()


def test_a_server_without_heartbeats_never_counts_as_dead_by_them(pair: MakePair) -> None:
    one = pair(enable_heartbeat=False, dead_server_timeout=timedelta(seconds=60))
    one.run.registration.register(one.storage)

    one.clock.passes(3600)

    assert not one.run.registration.may_have_counted_as_dead()


def looks_of(one: Pair, *, enable_heartbeat: bool) -> Callable[[int], None]:
    """Has a server that has just started look for so many seconds."""
    judging = one.loop._judging if enable_heartbeat else None
    loop = NeighbourLoop(one.run, judging=judging, neighbours=NoNeighbours())  # type: ignore[arg-type]

    def judge_looks(seconds: int) -> None:
        for _ in range(0, seconds, 2):
            one.clock.passes(2)
            if enable_heartbeat:
                one.loop.tick(one.storage)
            loop.tick(one.storage)

    return judge_looks


def has_been_given_back(one: Pair) -> bool:
    job = one.storage.get(one.job_id)
    return job is not None and job.state_name is StateName.ENQUEUED


class NoNeighbours:
    """Of this host."""

    has_news = False

    def watch(self, _servers: object) -> None:
        """There are none."""

    def waits_for(self, _server_id: str) -> bool:
        return False

    def leaving(self) -> list[str]:
        return []

    def tell(self, _left: object) -> None:
        """There are none."""


@pytest.mark.fault(75)
def test_a_silent_peers_job_that_is_refused_keeps_none_of_its_others_and_is_tried_until_it_is_given_back(
    pair: MakePair, tmp_path: Path
) -> None:
    one = pair(dead_server_timeout=timedelta(seconds=10), heartbeat_interval=timedelta(seconds=1))
    other_id = one.storage.enqueue(Job.new("m"))
    assert one.storage.fetch_and_lock_job(Fetch(worker_id=WORKER, server_id=PEER, queues=(), registered=True))
    [path] = tmp_path.glob("*.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            f"CREATE TRIGGER no BEFORE UPDATE ON qml_jobs WHEN OLD.id = '{one.job_id}' "
            "BEGIN SELECT RAISE(ABORT, 'not this'); END"
        )
        one.judge_beats_for(60)
        assert one.storage.get(other_id).state_name is StateName.ENQUEUED  # type: ignore[union-attr]
        assert one.storage.get(one.job_id).state_name is StateName.PROCESSING  # type: ignore[union-attr]
        assert not one.peer_beats()
        connection.execute("DROP TRIGGER no")

    one.judge_beats_for(70)

    assert one.storage.get(one.job_id).state_name is StateName.ENQUEUED  # type: ignore[union-attr]
    assert one.loop.failing_since is None


@pytest.mark.fault(75)
def test_a_dead_neighbours_refused_job_is_tried_again_after_its_row_went_for_its_silence(
    pair: MakePair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with subprocess.Popen(["sleep", "600"]) as process:
        dead = host.identity(process.pid)
        process.kill()
    one = pair(dead, dead_server_timeout=timedelta(seconds=10), heartbeat_interval=timedelta(seconds=1))
    loop = NeighbourLoop(one.run, judging=one.loop._judging, neighbours=NoNeighbours())  # type: ignore[arg-type]
    [path] = tmp_path.glob("*.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE UPDATE ON qml_jobs BEGIN SELECT RAISE(ABORT, 'not this'); END"
        )
        loop.tick(one.storage)
        assert PEER in {server.id for server in one.storage.list_servers()}
        one.judge_beats_for(60)
        assert PEER not in {server.id for server in one.storage.list_servers()}
        loop.tick(one.storage)
        assert not has_been_given_back(one)
        assert "are given back now" not in caplog.text
        connection.execute("DROP TRIGGER no")

    one.clock.passes(60)
    loop.tick(one.storage)

    assert has_been_given_back(one)
    assert caplog.text.count("are given back now") == 1


@pytest.mark.fault(75)
def test_a_peer_that_is_heard_again_after_a_refusal_keeps_its_jobs(pair: MakePair, tmp_path: Path) -> None:
    one = pair(dead_server_timeout=timedelta(seconds=10), heartbeat_interval=timedelta(seconds=1))
    one.storage.enqueue_many(Job.new("m") for _ in range(60))
    fetch = Fetch(worker_id=WORKER, server_id=PEER, queues=(), registered=True)
    one.storage.exchange((), fetch=fetch, limit=60, retention=Retention.of(one.run.config))
    [path] = tmp_path.glob("*.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER no BEFORE UPDATE ON qml_jobs BEGIN SELECT RAISE(ABORT, 'not this'); END"
        )
        with pytest.raises(StorageUnavailable, match="refused"):
            one.judge_beats_for(60)
        connection.execute("DROP TRIGGER no")
    assert one.peer_beats()

    one.both_beat_for(60)

    assert len(one.storage.claims_of_server(PEER)) == 61
    assert PEER in {server.id for server in one.storage.list_servers()}
