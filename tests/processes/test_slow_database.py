"""Tests: a server whose PostgreSQL says nothing any more, or takes its time for each reply.

A reply takes as long as the supervisor just bears, so that a supervisor which waits for one after
another exceeds each deadline here by far.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, is_gone, left_in_registry, wait_for_state, wait_until
from tests.storage.flaky_proxy import FlakyProxy

REPLY_S = 3.0
QUICK = {"QML_MP_CANCEL_GRACE": "0.3", "QML_MP_TERM_GRACE": "0.5", "QML_MP_HEARTBEAT_INTERVAL": "1s"}
MakeServer = Callable[..., Server]

pytestmark = [pytest.mark.fault(82), pytest.mark.parametrize("url", ["postgres"], indirect=True)]


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    with FlakyProxy.before(postgres_url) as running:
        yield running


@pytest.fixture
def make(server: MakeServer, url: str, proxy: FlakyProxy) -> MakeServer:
    """Makes servers that reach the storage through the proxy; the test itself does not."""

    def through_proxy(*flags: str) -> Server:
        one = server(*flags, **QUICK)
        one.url = proxy.through(url)
        return one

    return through_proxy


@pytest.fixture(params=["silent", pytest.param("slow", marks=pytest.mark.nightly)])
def make_worse(request: pytest.FixtureRequest, proxy: FlakyProxy) -> Callable[[], None]:
    """Begins the fault."""
    return proxy.go_silent if request.param == "silent" else lambda: proxy.slow_down(REPLY_S)


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def connections(pid: int) -> set[str]:
    """The TCP sockets that a process holds, as the kernel numbers them. (Those of its pairs are its workers'
    too.)"""
    folder = Path(f"/proc/{pid}/fd")
    links = set()
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # closed since it was listed
            links.add(os.readlink(folder / name))
    pairs = {f"socket:[{line.split()[6]}]" for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    return {link for link in links if link.startswith("socket:")} - pairs


def catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def busy(one: Server, storage: Storage, method: str, *, limit: timedelta | None = None) -> tuple[str, int]:
    """A job that runs: its id, and the process that runs it."""
    job_id = storage.enqueue(Job.new(method, timeout=limit))
    wait_until(one.journal, what=one.log)
    return job_id, one.journal()[0].pid


def opening(make: MakeServer, storage: Storage, proxy: FlakyProxy) -> Server:
    """A server that is about to recover what earlier runs left, and to register."""
    storage.migrate()
    proxy.slow_down(0.4)
    one = make("-w", "2").start(ready=None)
    wait_until(lambda: "Methods:" in one.log(), what="its first line")
    wait_until(lambda: catches_sigterm(one.pid), what=one.log)
    return one


@pytest.mark.nightly
def test_a_job_past_its_limit_is_killed_and_it_is_recorded_when_the_database_answers_again(
    make: MakeServer, storage: Storage, proxy: FlakyProxy
) -> None:
    one = make("-w", "1").start()
    job_id, worker_pid = busy(one, storage, "stubborn", limit=timedelta(seconds=2))

    proxy.slow_down(REPLY_S)
    wait_until(lambda: is_gone(worker_pid), within_s=8.0, what=one.log)
    assert storage.attempts(job_id) == ()  # nobody has heard of it yet

    proxy.slow_down(0)
    assert wait_for_state(storage, job_id, StateName.FAILED).failures == 1
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.TIMEOUT
    assert one.stop() == 0


def test_a_job_past_its_limit_is_killed_while_the_database_says_nothing(
    make: MakeServer, storage: Storage, make_worse: Callable[[], None]
) -> None:
    one = make("-w", "1", "--shutdown-timeout", "1").start()
    _, worker_pid = busy(one, storage, "stubborn", limit=timedelta(seconds=2))

    make_worse()

    wait_until(lambda: is_gone(worker_pid), within_s=8.0, what=one.log)


def test_an_idle_server_stops(make: MakeServer, storage: Storage, make_worse: Callable[[], None]) -> None:
    one = make("-w", "4").start(ready=4)
    make_worse()
    wait_until(lambda: "Storage cannot be reached" in one.log() or len(connections(one.pid)) >= 2)

    one.signal(signal.SIGTERM)

    assert one.wait(within_s=8.0) == 0, one.log()


def test_a_server_with_a_job_that_must_be_killed_stops(
    make: MakeServer, storage: Storage, make_worse: Callable[[], None]
) -> None:
    one = make("-w", "2", "--shutdown-timeout", "2").start(ready=2)
    job_id, worker_pid = busy(one, storage, "stubborn")
    make_worse()

    one.signal(signal.SIGTERM)

    assert one.wait(within_s=10.0) == 6, one.log()
    assert is_gone(worker_pid)
    two = Server(url=storage.url, folder=one.folder).start()
    try:
        wait_until(lambda: len({line.pid for line in one.journal()}) == 2, what=two.log)
        job = storage.get(job_id)
        assert job is not None
        assert (job.claim_seq, job.crashes) == (2, 0)  # given back, and found by the next server
        two.signal(signal.SIGQUIT)
        assert two.wait() == 6
    finally:
        two.clean_up()


@pytest.mark.nightly
def test_a_server_that_is_told_to_stop_while_it_starts_starts_no_worker(
    make: MakeServer, storage: Storage, proxy: FlakyProxy
) -> None:
    one = opening(make, storage, proxy)

    proxy.slow_down(REPLY_S)
    one.signal(signal.SIGTERM)

    assert one.wait(within_s=8.0) == 0, one.log()
    assert "started (pid" not in one.log()
    assert left_in_registry(storage, one.log()) == []


@pytest.mark.nightly
def test_a_server_whose_database_says_nothing_any_more_while_it_starts_says_so_and_starts_no_worker(
    make: MakeServer, storage: Storage, proxy: FlakyProxy
) -> None:
    one = opening(make, storage, proxy)

    proxy.go_silent()

    assert one.wait() == 4, one.log()
    assert "started (pid" not in one.log()


@pytest.mark.nightly
def test_jobs_are_done_and_the_dead_are_settled_at_the_pace_of_the_database(
    make: MakeServer, storage: Storage, proxy: FlakyProxy
) -> None:
    proxy.slow_down(0.3)
    one = make("-w", "2").start(ready=None)
    ids = [enqueue(storage, "quick") for _ in range(4)]
    fatal_id = enqueue(storage, "die_once_only")

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert wait_for_state(storage, fatal_id, StateName.FAILED).crashes == 1

    proxy.slow_down(0)
    assert one.stop() == 0, one.log()
    assert left_in_registry(storage, one.log()) == []
