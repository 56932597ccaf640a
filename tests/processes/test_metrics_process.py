"""Tests: the process beside a server that serves its metrics and its health, and what its ends do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.cgroup import no_strikes
from tests.processes.harness import Server, enqueue, is_gone, is_stopped, wait_until
from tests.processes.side import children, get, scrape, served_at, side_pid
from tests.storage.helpers import patient_url


@pytest.fixture
def served(server: Callable[..., Server]) -> Callable[..., Server]:
    """Starts a server of two workers that serves its metrics on a free port."""

    def start(*flags: str) -> Server:
        return server("-w", "2", "--metrics", "127.0.0.1:0", *flags).start(ready=2)

    return start


def test_a_scrape_tells_what_the_server_and_its_queues_do(
    served: Callable[..., Server], storage: Storage
) -> None:
    one = served()
    enqueue(storage, "nap", seconds=60)
    wait_until(one.journal)

    url = served_at(one)
    running = "qml_mp_queue_jobs queue=default state=processing"
    wait_until(lambda: scrape(url).get("qml_mp_workers state=busy") == 1)
    # A look at storage has a time limit: one that was late is told as such.
    told = wait_until(lambda: found if (found := scrape(url)).get(running) == 1 else None)

    assert told["qml_mp_workers state=idle"] == 1
    assert told["qml_mp_worker_resident_memory_bytes worker=2"] > 1_000_000
    assert told["qml_mp_storage_up"] == 1
    assert told["qml_mp_loop_last_success_timestamp_seconds loop=heartbeat"] > time.time() - 60
    assert get(f"{url}/livez") == (200, "ok\n")
    wait_until(lambda: get(f"{url}/readyz") == (200, "ok\n"), what="the health of the server")
    assert get(f"{url}/../etc/passwd")[0] == 404


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@no_strikes()
def test_deaths_of_workers_are_counted_by_their_cause(served: Callable[..., Server]) -> None:
    one = served()
    url = served_at(one)

    os.kill(one.worker_pids()[1], signal.SIGKILL)

    wait_until(lambda: scrape(url).get("qml_mp_worker_deaths_total cause=SIGKILL") == 1)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_it_ends_with_its_server(served: Callable[..., Server]) -> None:
    one = served()
    served_at(one)
    pid = wait_until(lambda: side_pid(one))

    assert one.stop() == 0

    assert is_gone(pid)


@pytest.mark.fault(4)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("hangs", [False, True])
def test_a_killed_supervisor_leaves_none_not_even_one_that_hangs(
    served: Callable[..., Server], hangs: bool
) -> None:
    one = served()
    served_at(one)
    pid = wait_until(lambda: side_pid(one))
    if hangs:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(pid))
    others = children(one.pid)

    one.signal(signal.SIGKILL)

    wait_until(lambda: is_gone(pid), what="its end")
    wait_until(lambda: all(map(is_gone, others)), what="the end of all")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_no_process_of_the_server_holds_a_descriptor_of_another(served: Callable[..., Server]) -> None:
    one = served()
    served_at(one)
    pid = wait_until(lambda: side_pid(one))
    mine = pipes(pid)

    held = {other: pipes(other) & mine for other in children(one.pid) if other != pid}

    assert not any(held.values())
    assert pipes(one.pid) & mine


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_port_in_use_is_told_once_and_keeps_no_job_from_running(
    server: Callable[..., Server], storage: Storage
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        one = server("-w", "1", "--metrics", address).start()
        wait_until(lambda: f"{address} cannot be listened on: Address already in use" in one.log())
        job = enqueue(storage, "quick")
        wait_until(lambda: storage.job_counts()[StateName.SUCCEEDED] == 1, what=job)

    served_at(one)  # it is free now

    assert one.log().count("cannot be listened on") == 1
    assert "Choose another port by the setting metrics (--metrics)" in one.log()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_for_a_page_whose_port_is_in_use_the_setting_is_named(server: Callable[..., Server]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        one = server("-w", "1", "--web", f"127.0.0.1:{taken.getsockname()[1]}").start()

        wait_until(
            lambda: "in use, maybe by another page; choose one by the setting web (--web)." in one.log()
        )


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_supervisor_that_hangs_does_not_live(served: Callable[..., Server]) -> None:
    one = served()
    url = served_at(one)
    wait_until(lambda: get(f"{url}/readyz")[0] == 200)

    one.signal(signal.SIGSTOP)

    wait_until(lambda: get(f"{url}/livez")[0] == 503)
    assert "the supervisor has not turned for" in get(f"{url}/livez")[1]
    one.signal(signal.SIGCONT)
    wait_until(lambda: get(f"{url}/livez")[0] == 200)


def test_the_figures_of_queues_are_told_once_per_storage_and_by_another_when_their_server_stops(
    server: Callable[..., Server], storage: Storage
) -> None:
    enqueue(storage, "nobody")  # whom nobody knows, so that it waits
    servers = [served_here(server, str(number)) for number in (1, 2)]
    urls = dict(zip([one.pid for one in servers], [served_at(one) for one in servers], strict=True))

    def tellers() -> list[int]:
        return [
            pid
            for pid, url in urls.items()
            if "qml_mp_queue_jobs queue=default state=enqueued" in scrape(url)
        ]

    first = wait_until(tellers)
    assert len(first) == 1
    assert wait_until(tellers) == first  # of a look that is late none tells
    next(one for one in servers if one.pid == first[0]).stop()
    del urls[first[0]]

    wait_until(lambda: tellers() == list(urls))


def served_here(server: Callable[..., Server], name: str) -> Server:
    """A server with a log of its own."""
    one = server("-w", "1", "--metrics", "127.0.0.1:0")
    one.folder = one.folder / name
    one.folder.mkdir()
    return one.start()


def pipes(pid: int) -> set[str]:
    """Those that the process has an end of, save its standard streams, which are the log."""
    links = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            links[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue
    return {link for link in links.values() if link.startswith("pipe:")}


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_file_that_is_gone_is_no_storage_that_answers(
    served: Callable[..., Server], storage: Storage
) -> None:
    one = served()
    url = served_at(one)
    wait_until(lambda: get(f"{url}/readyz")[0] == 200)

    path = Path(storage.url.removeprefix("sqlite://"))
    for name in ("", "-wal", "-shm"):
        Path(f"{path}{name}").unlink(missing_ok=True)

    wait_until(lambda: scrape(url)["qml_mp_storage_up"] == 0)
    assert "the storage does not answer" in get(f"{url}/readyz")[1].splitlines()
    wait_until(lambda: "Metrics cannot look at storage: The SQLite file" in one.log(), what=one.log)
    assert "qml-mp migrate" not in one.log()


def test_a_queue_that_is_served_or_has_been_seen_has_figures_while_it_is_empty(
    url: str, storage: Storage
) -> None:
    program = f"""
from datetime import UTC, datetime

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.server_info import ServerInfo
from qml_mp.metrics import storage_looks
from qml_mp.storage.open import open_storage
from qml_mp.storage.values import BY_DEFAULT

storage_looks._FRESH_S = 0.0
storage_looks._PATIENCE_S = 60.0  # else a late look has the figures of the one before
storage = open_storage({patient_url(url)!r})
looks = storage_looks.StorageLooks(open_storage({patient_url(url)!r}))

def tell():
    queues = None
    while queues is None:  # the look was late
        look = looks.newest(server_id="one")
        queues = look and look.queues
    print(*(f"{{each.name}} {{each.enqueued}}" for each in queues))

def register(name, *queues):
    now = datetime.now(UTC)
    storage.register_server(ServerInfo(
        id=name, name=name, hostname="here", process=host.identity(), worker_count=1, queues=queues,
        started_at=now, last_heartbeat=now))

tell()
register("one", "images", "reports")
job = storage.enqueue(Job.new("work", queue="images"))
other = storage.enqueue(Job.new("work", queue="unserved"))
tell()
for each in (job, other):
    storage.delete(each, reason="r", retention=BY_DEFAULT)
tell()
register("two")
tell()
"""

    # In a process of its own, because the thread that looks stays.
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.stdout.splitlines(), ended.stderr) == (
        [
            "",
            "images 1 unserved 1 reports 0",
            "images 0 reports 0 unserved 0",
            "default 0 images 0 reports 0 unserved 0",
        ],
        "",
    )


def test_queues_that_come_in_a_burst_take_no_series_from_those_that_had_one(url: str) -> None:
    program = f"""
from qml_mp.core.job import Job
from qml_mp.metrics import storage_looks
from qml_mp.storage.open import open_storage

storage_looks._FRESH_S, storage_looks.MOST_NAMES = 0.0, 1
storage_looks._PATIENCE_S = 60.0  # else a late look has the figures of the one before
storage = open_storage({patient_url(url)!r})
storage.migrate()
looks = storage_looks.StorageLooks(storage)
for name in ("zeta", "alpha"):
    storage.enqueue(Job.new("work", queue=name))
    queues = None
    while queues is None:  # the look was late
        look = looks.newest(server_id="one")
        queues = look and look.queues
    print(*(each.name for each in queues))
"""

    # In a process of its own, because the thread that looks stays.
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.stdout.splitlines(), ended.stderr) == (["zeta", "zeta alpha"], "")


def test_a_storage_that_takes_long_to_count_answers_and_its_figures_are_those_of_the_look_before(
    url: str, storage: Storage
) -> None:
    enqueue(storage, "nobody")
    program = f"""
import threading

from qml_mp.metrics import storage_looks
from qml_mp.storage.open import open_storage

storage_looks._PATIENCE_S, storage_looks._FRESH_S = 0.2, 0.0
storage_looks._COUNTING_S = storage_looks._FIGURES_KEPT_S = float("inf")  # however this process is held up
storage = open_storage({patient_url(url)!r})
count, may_count = storage.queue_stats, threading.Event()

def count_when_told(*, among):
    may_count.wait()
    return count(among=among)

storage.queue_stats = count_when_told
looks = storage_looks.StorageLooks(storage)

def tell(is_told):
    for _ in range(300):
        look = looks.newest(server_id="one")
        if look is not None and is_told(look):
            break
    print(look and look.answers, look and look.queues and [each.name for each in look.queues])

tell(lambda look: True)
may_count.set()
tell(lambda look: look.queues)
may_count.clear()
tell(lambda look: True)
storage_looks._PATIENCE_S = 60.0  # the look before may be over only now, and the next one has to begin
print(looks.health(server_id="one").answers)
"""

    # In a process of its own, because the thread that looks stays.
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (ended.stdout.splitlines(), ended.stderr) == (
        ["True None", "True ['default']", "True ['default']", "True"],
        "",
    )


def test_a_look_that_finds_no_schema_says_that_the_storage_does_not_answer(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    program = f"""
import logging
from qml_mp.metrics.storage_looks import StorageLooks
from qml_mp.storage.open import open_storage

logging.basicConfig()
looks = StorageLooks(open_storage("sqlite://{path}"))
look = None
while look is None:  # it was late
    look = looks.newest(server_id="one")
print(look.answers)
"""

    # In a process of its own, because the thread that looks stays.
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ended.stdout == "False\n"
    assert not path.exists()
    assert "put it back" in ended.stderr
    assert "qml-mp migrate" not in ended.stderr


@pytest.mark.parametrize(
    "accept", ["application/openmetrics-text; version=abc", "text/plain;version=x;escaping=allow-utf-8"]
)
def test_whoever_asks_for_a_version_that_is_none_gets_the_plain_format(tmp_path: Path, accept: str) -> None:
    program = f"""
from qml_mp.metrics.pages import MetricsPages
from qml_mp.storage.open import open_storage

answer = MetricsPages(open_storage("sqlite://{tmp_path}/jobs.db")).by_path()["/metrics"]({accept!r})
print(answer.status, answer.kind)
"""

    # In a process of its own, because the thread that looks stays.
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ended.stdout == "200 text/plain; version=0.0.4; charset=utf-8\n", ended.stderr
