"""Tests: the process beside a server that serves its metrics and its health, and what its ends do."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.cgroup import no_strikes
from tests.processes.harness import Server, enqueue, few, is_gone, is_stopped, wait_until
from tests.processes.side import children, get, scrape, served_at, side_pid


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
    assert told["qml_mp_queue_jobs queue=default state=enqueued"] == 0
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
@few("hangs", [True], nightly=[False])
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
