"""Tests: the processes beside a server that serve its page, its metrics and its health."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.cgroup import no_strikes
from tests.processes.harness import (
    PATIENCE_S,
    ROOT,
    Server,
    enqueue,
    few,
    is_gone,
    is_stopped,
    result_of,
    wait_until,
)
from tests.processes.side import children, get, scrape, served_at, side_pid
from tests.storage.flaky_proxy import FlakyProxy
from tests.web.serving import token_of


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
    # Some 10 s: so long may a supervisor not turn before it counts as hanging.
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


BOTH = ("--web", "127.0.0.1:0", "--metrics", "127.0.0.1:0")


def test_page_and_metrics_stand_side_by_side(server: Callable[..., Server]) -> None:
    one = server("-w", "1", *BOTH).start()

    page, metrics = served_at(one, "page"), served_at(one)

    status, text = get(f"{page}/")
    assert (status, "<!doctype html>" in text) == (200, True)
    assert scrape(metrics)["qml_mp_workers_wanted"] == 1
    pids = [side_pid(one, kind) or 0 for kind in ("page", "metrics")]
    assert all(pids)
    assert one.stop() == 0
    assert all(map(is_gone, pids))


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_the_page_is_shown_under_the_names_that_the_start_allows(server: Callable[..., Server]) -> None:
    names = ("jobs.example", "shop.example")
    flags = [flag for name in names for flag in ("--allow-host", name)]
    one = server("-w", "1", "--web", "127.0.0.1:0", *flags).start()
    page = served_at(one, "page")

    answers = {
        name: httpx.get(page, headers={"Host": name}, trust_env=False, timeout=PATIENCE_S)
        for name in (*names, "evil.example")
    }

    assert [answer.status_code for answer in answers.values()] == [200, 200, 421]
    assert "`qml-mp start` by --allow-host evil.example" in answers["evil.example"].text


_SECRETIVE = """
import os
from qml_mp import QmlApp
os.environ.pop('QML_MP_WEB_TOKEN', None)
def token():
    return os.environ.get('QML_MP_WEB_TOKEN')
app = QmlApp()
app.job()(token)
"""
_SECRET = "a-long-secret-token"


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@few("flags", [[]], nightly=[["--preload"]])
def test_people_sign_in_on_the_page_with_the_token_that_the_import_of_the_app_hides_from_its_jobs(
    server: Callable[..., Server], storage: Storage, tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "secretive.py").write_text(_SECRETIVE)
    path = f"{tmp_path}:{ROOT}"
    one = server(
        "-w", "1", "--web", "127.0.0.1:0", *flags, app="secretive:app",
        PYTHONPATH=path, QML_MP_WEB_TOKEN=_SECRET,
    ).start()  # fmt: skip

    with httpx.Client(base_url=served_at(one, "page"), trust_env=False, timeout=PATIENCE_S) as visitor:
        answer, form = visitor.get("/"), visitor.get("/sign-in")
        let_in = visitor.post("/sign-in", data={"page_token": token_of(form.text), "secret": _SECRET})

    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2F")
    assert (let_in.status_code, let_in.headers["location"]) == (303, "/")
    assert result_of(storage, "token") is None
    assert one.stop() == 0


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_scrape_while_storage_is_down_is_answered_and_says_so(
    server: Callable[..., Server], proxy: FlakyProxy, url: str
) -> None:
    one = server("-w", "1", "--metrics", "127.0.0.1:0")
    one.url = proxy.through(url)
    one.start()
    metrics = served_at(one)
    wait_until(lambda: get(f"{metrics}/readyz")[0] == 200)

    proxy.close()

    wait_until(lambda: scrape(metrics)["qml_mp_storage_up"] == 0)
    status, reasons = get(f"{metrics}/readyz")
    assert status == 503
    assert "the storage does not answer" in reasons.splitlines()
    assert get(f"{metrics}/livez") == (200, "ok\n")
    assert wait_until(lambda: scrape(metrics)["qml_mp_storage_errors_total process=supervisor"])


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_missing_extra_is_one_sentence_at_the_start(server: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "found = util.find_spec\n"
        "util.find_spec = lambda name, *more: None if name == 'prometheus_client' else found(name, *more)\n"
    )
    one = server("-w", "1", "--metrics", "127.0.0.1:0", PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    one.fresh = True
    one.start(ready=None)

    assert one.wait() == 2
    assert "metrics needs the extra `metrics`: pip install 'qml-mp[metrics]'" in one.log()
    assert "Traceback" not in one.log()
