"""Tests: a service that mounts the page answers by several processes (`uvicorn --workers 4`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.web import dashboard
from tests.web.asgi import Visitor
from tests.web.serving import token_of

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
def storage(file_url: str) -> Iterator[Storage]:
    with closing(open_storage(file_url)) as storage:
        yield storage


@pytest.mark.parametrize(
    "auth", [None, lambda _: "ada", TOKEN, ("ada", TOKEN)], ids=["none", "function", "token", "user"]
)
def test_a_form_of_one_process_is_taken_by_another(storage: Storage, auth: Any) -> None:
    visitor = Visitor(*(dashboard(storage, auth=auth) for _ in range(2)))
    if isinstance(auth, str | tuple):
        fields = {"page_token": token_of(visitor.get("/sign-in").text), "user": "ada", "secret": TOKEN}
        assert visitor.post("/sign-in", data=fields).status_code == 303

    for path in ("/queues/pause", "/queues/resume"):
        token = token_of(visitor.get("/queues").text)
        changed = visitor.post(path, data={"name": "default", "page_token": token})

        assert changed.status_code == 303, changed.text


@pytest.mark.parametrize("auth", [None, lambda _: "ada"], ids=["none", "function"])
def test_the_form_of_another_visitor_is_refused_by_all(storage: Storage, auth: Any) -> None:
    processes = [dashboard(storage, auth=auth) for _ in range(2)]
    visitor, other = Visitor(*processes), Visitor(*processes)
    visitor.get("/queues")
    others = token_of(other.get("/queues").text)

    answers = [
        visitor.post("/queues/pause", data={"name": "default", "page_token": others}) for _ in processes
    ]

    assert [answer.status_code for answer in answers] == [403, 403]
    assert storage.standings() == []
