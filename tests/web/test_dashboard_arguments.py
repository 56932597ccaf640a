"""Tests: what `dashboard` is given, and cannot be, is refused where it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from qml_mp import QmlApp
from qml_mp.core.job import Job
from qml_mp.errors import ConfigurationError
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.web import HIDDEN, dashboard
from tests.web.asgi import Visitor


@pytest.fixture
def storage(file_url: str) -> Iterator[Storage]:
    with closing(open_storage(file_url)) as storage:
        yield storage


@pytest.mark.parametrize(
    "app", ["postgresql://ada:hunter2@db/jobs", None, QmlApp], ids=["url", "none", "class"]
)
def test_what_has_no_jobs_to_show_is_refused(app: Any) -> None:
    with pytest.raises(ConfigurationError, match="it takes a QmlApp, or the storage") as refused:
        dashboard(app)

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "hosts",
    [
        "ops.example.com", ["https://ops.example.com"], ["ops.example.com:443"], ["*.example.com"], [""],
        [7], 7,
    ],
)  # fmt: skip
def test_names_under_which_it_could_never_be_reached_are_refused(storage: Storage, hosts: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"hosts is .*; it must be a list of names without ports"):
        dashboard(storage, hosts=hosts)


@pytest.mark.parametrize("hide", ["foo", ["iban", 7], 7, None])
def test_keys_that_are_no_list_of_texts_are_refused(storage: Storage, hide: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"hide is .*; it must be a list of texts"):
        dashboard(storage, hide=hide)


def test_what_is_right_is_taken(storage: Storage) -> None:
    job_id = storage.enqueue(Job.new("pay", {"password": "hunter2", "iban": "DE89", "sum": 12}))
    keys = (key for key in (*HIDDEN, "iban"))

    shown = Visitor(
        dashboard(storage, hide=keys, hosts=("ops.example.com", "jobs")), origin="http://OPS.example.com"
    ).get(f"/jobs/{job_id}/value?what=payload")

    assert shown.status_code == 200
    assert "DE89" not in shown.text
    assert "12" in shown.text
