"""Tests of the page without a browser: real `qml-mp web` processes on a fresh storage of either backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.fresh_storage import fresh_url
from tests.storage.helpers import open_patiently
from tests.web.serving import Served, served


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A fresh storage for the tests of a module."""
    yield from fresh_url(request, tmp_path_factory)


@pytest.fixture(scope="module")
def storage(url: str) -> Iterator[Storage]:
    """A client of it, with its schema made."""
    with closing(open_patiently(url)) as storage:
        storage.migrate()
        yield storage


@pytest.fixture(scope="module")
def page(storage: Storage, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Its page, on loopback, for everybody."""
    with served(url, tmp_path_factory.mktemp("web")) as page:
        yield page


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    """An SQLite file with a schema, for what does not depend on the backend."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    with closing(open_storage(url)) as storage:
        storage.migrate()
    return url
