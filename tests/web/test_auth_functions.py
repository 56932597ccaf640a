"""Tests: an application says by a function who may see the page that is part of it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.requests import HTTPConnection

from qml_mp.errors import ConfigurationError
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.web import dashboard
from tests.web.asgi import Visitor
from tests.web.serving import sentence_of, token_of

LIMIT_S = 20.0


async def asked_later(request: HTTPConnection) -> str | None:
    return None


async def asked_ever_later(request: HTTPConnection) -> AsyncIterator[None]:
    yield None


def asked_bit_by_bit(request: HTTPConnection) -> Iterator[None]:
    yield None


class AskedLater:
    """One whose call is a coroutine function."""

    async def __call__(self, request: HTTPConnection) -> str | None:
        return None

    async def method(self, request: HTTPConnection) -> str | None:
        return None


class User:
    """What an application may have of a person."""

    name = "ada"


class Host:
    """An application that answers as the test says: each answer once, and the last one for ever."""

    def __init__(self) -> None:
        self.answers: list[Callable[[], Any]] = [lambda: "ada"]

    def __call__(self, request: HTTPConnection) -> Any:
        return (self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])()


@pytest.fixture
def storage(file_url: str) -> Iterator[Storage]:
    with closing(open_storage(file_url)) as storage:
        yield storage


@pytest.mark.parametrize(
    "function",
    [
        asked_later, asked_ever_later, asked_bit_by_bit, AskedLater(), AskedLater().method,
        partial(asked_later), partial(partial(asked_later)), partial(AskedLater()),
    ],
    ids=[
        "coroutine function", "async generator", "generator", "object", "method", "partial", "partial twice",
        "partial object",
    ],
)  # fmt: skip
def test_a_function_of_which_nothing_would_run_is_refused(storage: Storage, function: Any) -> None:
    """What it returns at once would count as a name, and let everybody in."""
    with pytest.raises(ConfigurationError, match=r"auth is .*; it must be a plain function") as refused:
        dashboard(storage, auth=function)

    assert "nothing would run" in str(refused.value)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda: True, "bool"), (lambda: False, "bool"), (User, "User"), (lambda: b"ada", "bytes"),
        (lambda: asked_later(HTTPConnection({"type": "http"})), "coroutine"),
    ],
    ids=["true", "false", "user", "bytes", "coroutine"],
)  # fmt: skip
def test_an_answer_that_is_no_name_lets_nobody_in(
    storage: Storage, answer: Callable[[], Any], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="qml_mp.web")
    host = Host()
    visitor = Visitor(dashboard(storage, auth=host))
    token = token_of(visitor.get("/").text)
    host.answers = [answer]

    shown = visitor.get("/queues")
    changed = visitor.post("/queues/pause", data={"name": "default", "page_token": token})

    assert shown.status_code == changed.status_code == 500
    assert sentence_of(shown).startswith("The application that this page is part of did not say who you are")
    assert storage.standings() == []
    assert storage.list_acts().acts == ()
    told = [each.getMessage() for each in caplog.records if each.name.startswith("qml_mp.web")]
    assert len(told) == 2
    assert f"gave a value of type {kind}" in told[0]
    assert "None for nobody" in told[0]


@pytest.mark.parametrize("answer", [None, ""])
def test_nobody_is_let_in_whose_name_is_not_known(storage: Storage, answer: str | None) -> None:
    shown = Visitor(dashboard(storage, auth=lambda _: answer)).get("/")

    assert shown.status_code == 403
    assert sentence_of(shown).startswith("You may not see this page")


def test_a_change_is_noted_as_that_of_who_was_let_in(storage: Storage) -> None:
    """Whatever the function would say after it."""
    host = Host()
    visitor = Visitor(dashboard(storage, auth=host))
    token = token_of(visitor.get("/").text)
    host.answers = [lambda: "ada", User]

    changed = visitor.post("/queues/pause", data={"name": "default", "page_token": token})

    assert changed.status_code == 303
    assert [act.by.who for act in storage.list_acts().acts] == ["ada"]


def test_while_the_function_waits_the_event_loop_goes_on(storage: Storage) -> None:
    is_asked, may_answer = threading.Event(), threading.Event()

    def ask(request: HTTPConnection) -> str | None:
        is_asked.set()
        return "ada" if may_answer.wait(LIMIT_S) else None

    async def let_it_answer() -> None:
        await asyncio.to_thread(is_asked.wait, LIMIT_S)
        may_answer.set()

    async def visit() -> int:
        transport = httpx.ASGITransport(app=dashboard(storage, auth=ask))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer, _ = await asyncio.gather(client.get("/"), let_it_answer())
            return answer.status_code

    assert asyncio.run(visit()) == 200
