"""Tests: the page within another application, under a prefix, served by uvicorn."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from qml_mp.storage.open import open_storage
from qml_mp.web import dashboard
from tests.processes.harness import ROOT, wait_until
from tests.web.asgi import Visitor
from tests.web.serving import sentence_of, token_of

TOKEN = "a-token-that-nobody-guesses"
_HOST = """
from fastapi import FastAPI
from qml_mp import QmlApp
from qml_mp.web import dashboard

jobs = QmlApp({url!r})

def who(request):
    return request.headers.get("x-user")

service = FastAPI()

@service.get("/")
def home():
    return "home"

service.mount("/ops/jobs", dashboard(jobs, hosts=["jobs.example"]))
service.mount("/theirs", dashboard(jobs, auth=who, read_only=True))
"""


@contextmanager
def hosting(url: str, folder: Path, *flags: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    """The FastAPI application under uvicorn, within the block."""
    (folder / "hosting.py").write_text(_HOST.format(url=url))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "hosting:service", "--port", "0", *flags],
            cwd=folder, env={**kept, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip

    def address() -> str | None:
        text = (folder / "log").read_text()
        assert process.poll() is None, text
        found = re.search(r"running on (http://\S+)", text)
        return found and found[1]

    try:
        where = wait_until(address, what="the host")
        with httpx.Client(base_url=where, trust_env=False, timeout=60) as client:
            yield client, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def client(file_url: str, tmp_path: Path) -> Iterator[httpx.Client]:
    with hosting(file_url, tmp_path) as (client, _):
        yield client


class Links(HTMLParser):
    """All addresses that a page names."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("href", "src", "action", "hx-get", "sse-connect")
        self.found += [value for name, value in attrs if name in names and value and value[0] != "#"]


def test_every_address_has_the_prefix(client: httpx.Client) -> None:
    links = Links(client.get("/ops/jobs/").text).found

    assert len(links) > 8
    assert [link for link in links if not link.startswith("/ops/jobs/")] == []
    assert [link for link in links if link.endswith(".js")] == []  # each has its version
    for link in links:
        if link not in ("/ops/jobs/events", "/ops/jobs/sign-out"):
            assert client.get(link).status_code == 200, link


def test_behind_a_proxy_that_takes_a_prefix_away_it_is_there_too(file_url: str, tmp_path: Path) -> None:
    with hosting(file_url, tmp_path, "--root-path", "/behind") as (client, _):
        links = Links(client.get("/ops/jobs/").text).found

    assert [link for link in links if not link.startswith("/behind/ops/jobs/")] == []


def test_its_cookies_are_for_its_own_path(client: httpx.Client) -> None:
    assert "Path=/ops/jobs;" in client.get("/ops/jobs/").headers["set-cookie"]
    assert "set-cookie" not in client.get("/").headers


def test_a_part_alone_is_given_to_htmx(client: httpx.Client) -> None:
    part = client.get("/ops/jobs/", headers={"HX-Request": "true", "HX-Target": "figures"})

    assert "<html" not in part.text
    assert "enqueued" in part.text


def test_the_host_says_who_may_see_it(client: httpx.Client) -> None:
    nobody = client.get("/theirs/")
    somebody = client.get("/theirs/", headers={"X-User": "ada"})

    assert nobody.status_code == 403
    assert sentence_of(nobody).startswith("You may not see this page")
    assert somebody.status_code == 200


def test_a_page_for_reading_refuses_changes_of_those_too_who_may_see_it(client: httpx.Client) -> None:
    ada = {"X-User": "ada"}
    token = token_of(client.get("/theirs/", headers=ada).text)

    answer = client.post("/theirs/queues/pause", data={"name": "default", "page_token": token}, headers=ada)

    assert answer.status_code == 403


def test_names_are_those_that_were_given(client: httpx.Client) -> None:
    assert client.get("/ops/jobs/", headers={"Host": "jobs.example"}).status_code == 200
    assert client.get("/ops/jobs/", headers={"Host": "evil.example"}).status_code == 421
    # Who has to be known anyway cannot be made to ask under a foreign name with somebody's rights.
    assert client.get("/theirs/", headers={"Host": "any.example", "X-User": "ada"}).status_code == 200


def test_the_rest_of_the_host_is_left_alone(client: httpx.Client) -> None:
    answer = client.get("/", headers={"Host": "evil.example"})

    assert answer.json() == "home"
    assert "content-security-policy" not in answer.headers


def test_the_host_ends_as_ever_when_nobody_looks(file_url: str, tmp_path: Path) -> None:
    with hosting(file_url, tmp_path) as (client, process):
        with client.stream("GET", "/ops/jobs/events") as stream:
            assert next(stream.iter_lines()) == "event: hello"
        process.send_signal(signal.SIGTERM)

        assert process.wait(60) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("prefix", ["/jöbs", "/my jobs", "/задания", "/ops@home", "/100%"])
def test_under_whatever_path_people_sign_in_and_their_cookies_are_sent(file_url: str, prefix: str) -> None:
    with closing(open_storage(file_url)) as storage:
        page = dashboard(storage, auth=TOKEN)
        visitor = Visitor(Starlette(routes=[Mount(prefix, page)]))

        sent_away = visitor.get(f"{quote(prefix, safe='/@')}/")
        form = visitor.get(sent_away.headers["location"])
        fields = {"page_token": token_of(form.text), "secret": TOKEN, "next": "/"}
        let_in = visitor.post(str(form.url.copy_with(query=None)), data=fields)
        home = visitor.get(let_in.headers["location"])

    assert (sent_away.status_code, form.status_code, let_in.status_code) == (303, 200, 303)
    assert home.status_code == 200
    paths = [re.search("[Pp]ath=([^;]*)", each.headers["set-cookie"]) for each in (form, let_in)]
    for path in paths:  # a browser compares the two as they are written
        assert path is not None
        assert home.url.raw_path.decode().startswith(f"{path[1]}/")


def test_pages_of_one_host_under_paths_of_which_one_is_within_the_other_take_their_own_forms(
    file_url: str,
) -> None:
    """In two tabs of a browser, which sends the cookies of the outer path to both."""
    with closing(open_storage(file_url)) as storage:
        routes = [Mount("/jobs", dashboard(storage)), Mount("/", dashboard(storage))]
        visitor = Visitor(Starlette(routes=routes))

        tokens = {path: token_of(visitor.get(f"{path}/queues").text) for path in ("/jobs", "")}
        answers = [
            visitor.post(f"{path}/queues/pause", data={"name": "images", "page_token": token})
            for path, token in tokens.items()
        ]

    assert [answer.status_code for answer in answers] == [303, 303]
