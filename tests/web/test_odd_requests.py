"""Tests: requests with bytes that no browser sends are refused in a sentence, and no error of the page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from starlette.types import ASGIApp, Message

from qml_mp.storage.open import open_storage
from qml_mp.web import dashboard
from tests.web.asgi import Visitor
from tests.web.serving import sentence_of, token_of

_OF_ANOTHER_SITE = "This change was asked for by another site, and nothing was changed."


@pytest.fixture
def page(file_url: str) -> Iterator[ASGIApp]:
    """One whose Host may be any: people have to be known."""
    with closing(open_storage(file_url)) as storage:
        yield dashboard(storage, auth=lambda _: "ada")


def status_of(
    page: ASGIApp,
    path: str = "/queues",
    *,
    method: str = "GET",
    query: bytes = b"",
    host: bytes = b"localhost",
    is_whole: bool = True,
) -> int:
    """Of the answer to a request, as a server may hand it on that checks nothing."""
    sent: list[Message] = []
    scope: dict[str, Any] = {
        "type": "http", "method": method, "scheme": "http", "path": path, "raw_path": None,
        "query_string": query, "root_path": "", "headers": [(b"host", host)],
    }  # fmt: skip

    async def receive() -> Message:
        return {"type": "http.request", "body": b""} if is_whole else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        await page(scope, receive, send)

    asyncio.run(ask())
    status: int = sent[0]["status"]
    return status


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "http://[:::]", "", "\u00ff", "//localhost"])
def test_a_change_from_what_is_no_origin_is_refused(page: ASGIApp, origin: str) -> None:
    visitor = Visitor(page)
    fields = {"name": "default", "page_token": token_of(visitor.get("/queues").text)}

    answer = visitor.post("/queues/pause", data=fields, headers={"Origin": origin.encode("latin-1")})

    assert answer.status_code == 403
    assert sentence_of(answer) == _OF_ANOTHER_SITE


def test_what_came_without_tls_changes_no_page_that_is_served_by_it(page: ASGIApp) -> None:
    """Anybody between could have made it, and set the cookie that goes with it."""
    visitor = Visitor(page, origin="https://localhost")
    fields = {"name": "default", "page_token": token_of(visitor.get("/queues").text)}

    answers = [
        visitor.post("/queues/pause", data=fields, headers={"Origin": f"{scheme}://localhost"})
        for scheme in ("http", "https")
    ]

    assert [answer.status_code for answer in answers] == [403, 303]


@pytest.mark.parametrize("host", [b"[:::]", b"[::1", b"[]", b"[1.2]", b"\xff"])
def test_a_host_that_is_no_address_is_refused(page: ASGIApp, host: bytes) -> None:
    assert status_of(page, host=host) == 400


@pytest.mark.parametrize("path", ["/queues", "/queues/"])
def test_a_query_that_is_no_text_is_refused(page: ASGIApp, path: str) -> None:
    assert status_of(page, path, query=b"a=\xff") == 400


def test_a_server_need_not_say_how_the_path_was_written(page: ASGIApp) -> None:
    assert status_of(page) == 200


def test_a_form_that_is_broken_off_is_no_error_of_the_page(page: ASGIApp) -> None:
    assert status_of(page, "/queues/pause", method="POST", is_whole=False) == 400
