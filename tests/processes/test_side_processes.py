"""Tests: a server that serves its page and its metrics, also while storage is down, in another program, and
without what they are made of."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from qml_mp.storage.store import Storage
from tests.processes.harness import PATIENCE_S, ROOT, Server, few, is_gone, result_of, wait_until
from tests.processes.side import get, scrape, served_at, side_pid
from tests.storage.flaky_proxy import FlakyProxy
from tests.web.serving import token_of

BOTH = ("--web", "127.0.0.1:0", "--metrics", "127.0.0.1:0")


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    """A proxy before the server."""
    with FlakyProxy.before(postgres_url) as running:
        yield running


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
app, admin = QmlApp(), QmlApp()
for each in app, admin:
    each.job()(token)
"""
_GUEST = """
from qml_mp import QmlApp
from secretive import token
app = QmlApp()
app.job()(token)
"""
_EMBEDDED = """
import logging, signal, sys, threading
from qml_mp import BackgroundJobServer, ServerConfig, open_storage
logging.basicConfig(level=logging.INFO)
def server(app, **settings):
    config = ServerConfig(worker_count=1, web="127.0.0.1:0", **settings)
    return BackgroundJobServer(config, open_storage(sys.argv[4]), app)
server("secretive:app", preload=True).run()
server("secretive:app", preload=True).run()
server("secretive:admin", preload=True).run()
server("secretive:app").run()
server("guest:app").run()
threading.Thread(target=threading.Event().wait, daemon=True).start()  # with which nothing can be forked
last, ended = server("secretive:app"), threading.Event()
signal.signal(signal.SIGTERM, lambda *_: (last.stop(), ended.set()))
last.start()
ended.wait()
"""
_SECRET = "a-long-secret-token"
_SET_AGAIN = """
import itertools, os
runs = itertools.count()
""" + _EMBEDDED.replace(
    "    config =", f"    os.environ['QML_MP_WEB_TOKEN'] = f'{_SECRET}-{{next(runs)}}'\n    config ="
)
_RUNS = 6  # one after the other; only the first of those in the very process imports the module


def page_of(server: Server, run: int) -> str:
    """Where it is in this run of the program."""
    wait_until(lambda: server.log().count("The page: http") > run, what=server.log)
    return served_at(server, "page")


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@few(
    "program, flags",
    [(("-m", "qml_mp"), ())],
    nightly=[
        (("-m", "qml_mp"), ("--preload",)),
        (("-c", _EMBEDDED), ()),
        (("-c", _SET_AGAIN), ()),
    ],
)
def test_people_sign_in_on_the_page_with_the_token_that_the_import_of_the_app_hides_from_its_jobs(
    server: Callable[..., Server], storage: Storage, tmp_path: Path,
    program: tuple[str, ...], flags: tuple[str, ...],
) -> None:  # fmt: skip
    (tmp_path / "secretive.py").write_text(_SECRETIVE)
    (tmp_path / "guest.py").write_text(_GUEST)
    one = server(
        "-w", "1", "--web", "127.0.0.1:0", *flags, app="secretive:app",
        PYTHONPATH=f"{tmp_path}:{ROOT}", QML_MP_WEB_TOKEN=_SECRET,
    )  # fmt: skip
    one.program = program
    one.fresh = "-c" in program
    one.start()

    for run in range(_RUNS if one.fresh else 1):
        if run:
            one.signal(signal.SIGTERM)
        secret = f"{_SECRET}-{run}" if program == ("-c", _SET_AGAIN) else _SECRET
        with httpx.Client(base_url=page_of(one, run), trust_env=False, timeout=PATIENCE_S) as visitor:
            answer, form = visitor.get("/"), visitor.get("/sign-in")
            let_in = visitor.post("/sign-in", data={"page_token": token_of(form.text), "secret": secret})
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
