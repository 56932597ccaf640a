"""Tests: a server whose PostgreSQL is slow, silent, locked, altered or gone for a while, or nowhere."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.processes.harness import (
    ROOT,
    Server,
    enqueue,
    is_gone,
    left_in_registry,
    result_of,
    wait_for_a_beat,
    wait_for_state,
    wait_until,
)
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import patient_url

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)
REPLY_S = 3.0
QUICK = {"QML_MP_CANCEL_GRACE": "0.3", "QML_MP_TERM_GRACE": "0.5", "QML_MP_HEARTBEAT_INTERVAL": "1s"}
MakeServer = Callable[..., Server]


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


@pytest.mark.fault(82)
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


@pytest.mark.fault(82)
def test_a_job_past_its_limit_is_killed_while_the_database_says_nothing(
    make: MakeServer, storage: Storage, make_worse: Callable[[], None]
) -> None:
    one = make("-w", "1", "--shutdown-timeout", "1").start()
    _, worker_pid = busy(one, storage, "stubborn", limit=timedelta(seconds=2))

    make_worse()

    wait_until(lambda: is_gone(worker_pid), within_s=8.0, what=one.log)


@pytest.mark.fault(82)
def test_an_idle_server_stops(make: MakeServer, storage: Storage, make_worse: Callable[[], None]) -> None:
    one = make("-w", "4").start(ready=4)
    make_worse()
    wait_until(lambda: "Storage cannot be reached" in one.log() or len(connections(one.pid)) >= 2)

    one.signal(signal.SIGTERM)

    assert one.wait(within_s=8.0) == 0, one.log()


@pytest.mark.fault(82)
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


@pytest.mark.fault(82)
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


@pytest.mark.fault(82)
@pytest.mark.nightly
def test_a_server_whose_database_says_nothing_any_more_while_it_starts_says_so_and_starts_no_worker(
    make: MakeServer, storage: Storage, proxy: FlakyProxy
) -> None:
    one = opening(make, storage, proxy)

    proxy.go_silent()

    assert one.wait() == 4, one.log()
    assert "started (pid" not in one.log()


@pytest.mark.fault(82)
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


NAME = "db.test"
RESOLVER = f"""
import os, socket, time
look_up = socket.getaddrinfo
def with_our_name(host, *more, **others):
    while host == {NAME!r} and os.path.exists({{silence!r}}):
        open({{silence!r}} + f" {{{{os.getpid()}}}}", "a").close()
        time.sleep(0.05)
    return look_up("127.0.0.1" if host == {NAME!r} else host, *more, **others)
socket.getaddrinfo = with_our_name
"""


class NameServer:
    """Of servers that are started with its `folder` before all others of Python's path."""

    def __init__(self, folder: Path, proxy: FlakyProxy) -> None:
        self.folder = folder
        self._silence = folder / "silence"
        self._proxy = proxy
        (folder / "sitecustomize.py").write_text(RESOLVER.format(silence=str(self._silence)))

    def go_silent(self) -> None:
        """And no connection is left that was made with its help."""
        self._silence.touch()
        self._proxy.cut()

    def asked_by(self) -> set[int]:
        """The processes that it has left without an answer."""
        return {int(said.name.split()[1]) for said in self.folder.glob("silence *")}


@pytest.fixture
def names(tmp_path: Path, proxy: FlakyProxy) -> NameServer:
    return NameServer(tmp_path, proxy)


@pytest.fixture
def one(server: Callable[..., Server], url: str, proxy: FlakyProxy, names: NameServer) -> Server:
    """A server that looks the storage's name up, and then reaches it through the proxy; not the test."""
    one = server("-w", "1", "--shutdown-timeout", "2", PYTHONPATH=f"{names.folder}:{ROOT}", **QUICK)
    one.url = proxy.through(url).replace("127.0.0.1", NAME)
    one.fresh = True
    return one.start()


@pytest.mark.fault(82)
def test_an_idle_server_stops_while_no_name_server_answers(one: Server, names: NameServer) -> None:
    workers = set(one.worker_pids().values())
    names.go_silent()
    wait_until(lambda: names.asked_by() - workers, what="a look-up for the supervisor")

    one.signal(signal.SIGTERM)

    assert one.wait(within_s=8.0) == 0, one.log()


HELD_UP = "lock timeout"


@contextmanager
def locked_jobs(url: str) -> Iterator[None]:
    """Nobody else can read or write a job within the block."""
    server, _, schema = url.rpartition("?schema=")
    with psycopg.connect(server, autocommit=True) as admin, admin.transaction():
        table = sql.Identifier(schema, "jobs")
        admin.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(table))
        yield


@pytest.mark.nightly
@pytest.mark.fault(76)
def test_an_idle_server_runs_what_became_due_behind_a_lock(
    server: Callable[..., Server], storage: Storage, url: str
) -> None:
    one = server("-v", "-w", "1").start()
    soon = datetime.now(UTC) + timedelta(seconds=2)
    ids = storage.enqueue_many(Job.new("quick", {}, at=soon) for _ in range(4))

    with locked_jobs(url):
        wait_until(lambda: one.log().count(HELD_UP) >= 4, what=one.log)

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert Counter(one.starts()) == dict.fromkeys(ids, 1)
    wait_for_a_beat(one, storage)
    assert one.stop() == 0


@pytest.mark.fault(76)
def test_no_finished_job_fails_or_runs_again_for_a_lock(
    server: Callable[..., Server], storage: Storage, url: str
) -> None:
    # Some 15 s: three waits for a lock have to end first, and each is as long as a worker is patient.
    ids = storage.enqueue_many(Job.new("nap", {"seconds": 0.2}, max_crashes=1) for _ in range(12))
    one = server("-v", "-w", "1").start()
    wait_until(lambda: len(Counter(one.starts())) >= 4, what=one.log)

    with locked_jobs(url):  # until the driver has come to prepare statements that cannot be prepared now
        wait_until(lambda: one.log().count("Cannot write an outcome") >= 3, what=one.log)

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert Counter(one.starts()) == dict.fromkeys(ids, 1)
    assert one.stop() == 0


@pytest.mark.fault(83)
def test_columns_added_while_jobs_run_cost_nothing(
    server: Callable[..., Server], storage: Storage, url: str
) -> None:
    one = server("-w", "2").start(ready=2)
    ids = storage.enqueue_many(Job.new("quick", {"busy_s": 0.05}, max_crashes=1) for _ in range(60))
    wait_until(lambda: len(Counter(one.starts())) > 20, what=one.log)

    address, _, schema = url.rpartition("?schema=")
    with psycopg.connect(address, autocommit=True) as admin:
        for table in ("jobs", "attempts", "workers", "servers", "recurring_jobs"):
            name = sql.Identifier(schema, table)
            admin.execute(sql.SQL("ALTER TABLE {} ADD COLUMN note text DEFAULT 'none'").format(name))

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    assert Counter(one.starts()) == dict.fromkeys(ids, 1)
    assert one.stop() == 0
    assert "cached plan" not in one.log()
    assert "Cannot" not in one.log()


APP = "tests.processes.apps_storage_faults:app"
OBSERVED_S = 2.0
"""What is looked at is that nothing is done in this time: there is no fact to wait for."""


@pytest.fixture
def through_proxy(url: str, proxy: FlakyProxy) -> str:
    """The URL of a fresh storage that is reached through the proxy."""
    return proxy.through(url)


@pytest.mark.nightly
def test_a_server_without_storage_waits_and_does_not_spin(
    server: Callable[..., Server], proxy: FlakyProxy, through_proxy: str, tmp_path: Path
) -> None:
    one = server("-w", "1", app=APP)
    one.url = through_proxy
    one.start()
    storage = open_storage(patient_url(through_proxy))
    enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    wait_until(one.journal, what=one.log)
    storage.close()

    proxy.close()
    wait_until(lambda: "is tried again in" in one.log(), what=one.log)
    began, used_s = time.monotonic(), cpu_s(one.pid)
    time.sleep(OBSERVED_S)  # what a process uses in that time is what is measured
    share = (cpu_s(one.pid) - used_s) / (time.monotonic() - began)

    assert share < 0.1  # of a processor; a loop that waits for nothing takes what it gets
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6


def test_after_an_outage_a_server_hears_of_commits_although_no_connection_was_cut(
    server: Callable[..., Server], storage: Storage, proxy: FlakyProxy, through_proxy: str
) -> None:
    # Some 8 s: a silent connection is given up after seconds.
    often = {"QML_MP_HEARTBEAT_INTERVAL": "0.5s"}
    never = {"QML_MP_POLLING_INTERVAL": "1h", "QML_MP_SCHEDULER_POLL_INTERVAL": "1h"}
    one = server("-w", "1", app=APP, **often, **never)
    one.url = through_proxy
    one.start()
    assert result_of(storage, "plain") == "plain"

    proxy.go_silent()
    meanwhile = enqueue(storage, "plain")  # whatever hears of it by a connection from before has lost that
    wait_until(lambda: "Storage cannot be reached" in one.log(), what=one.log)
    proxy.speak(cut=False)
    wait_until(lambda: "Storage answers again" in one.log(), what=one.log)
    wait_for_state(storage, meanwhile, StateName.SUCCEEDED)

    # The supervisor has to hear of it, which has no other reason to look for such a job.
    scheduled = storage.enqueue(Job.new("plain", delay=timedelta(seconds=0.2)))

    wait_for_state(storage, scheduled, StateName.SUCCEEDED)
    assert one.stop() == 0


def cpu_s(pid: int) -> float:
    """What the process has used of a processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
