"""Tests: servers on both backends."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qml_mp.storage.store import Storage
from tests.migrated_copies import MigratedCopies
from tests.postgres_cluster import remove_schema
from tests.processes.harness import Server
from tests.processes.leaving import leaving_patiently
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import in_schema, open_patiently


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that names no backend runs on one in the quick tier and on both at night.

    The quick one is SQLite, with one lock for all writers, unless the module says `LIKELIER = "postgres"`:
    what it tests is likelier to break there (connections that are lost, claims on their way, several hosts).
    """
    marks = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    named = {name for mark in marks for name in ([mark] if isinstance(mark, str) else mark)}
    for name in ("url", "ground"):
        if name in metafunc.fixturenames and name not in named:
            quick = getattr(metafunc.module, "LIKELIER", "sqlite")
            (other,) = {"sqlite", "postgres"} - {quick}
            metafunc.parametrize(name, [quick, pytest.param(other, marks=pytest.mark.nightly)], indirect=True)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path, migrated_copies: MigratedCopies) -> Iterator[str]:
    """A fresh storage: a file, or a schema of its own in a real PostgreSQL database, migrated as that of most
    users unless the test is marked `unmigrated`; where a test asks for it, also one in memory, which only
    servers in this program's name can share."""
    if request.param == "memory":
        yield "memory://"
        return
    server = request.getfixturevalue("postgres_url") if request.param == "postgres" else ""
    schema = f"p_{uuid.uuid4().hex[:12]}"
    url = in_schema(server, schema) if server else f"sqlite:///{tmp_path / 'jobs.db'}"
    is_migrated = request.node.get_closest_marker("unmigrated") is None
    if is_migrated:
        migrated_copies.make(url)
    yield url
    if is_migrated:
        migrated_copies.take_back(url)
    if server:
        remove_schema(server, schema)


@pytest.fixture
def storage(url: str) -> Iterator[Storage]:
    """A client of the storage. It waits for a lock as long as tests wait for anything: whoever has that may
    have to wait for a processor."""
    storage = open_patiently(url)
    yield storage
    storage.close()


@pytest.fixture
def server(
    request: pytest.FixtureRequest, url: str, storage: Storage, tmp_path: Path
) -> Iterator[Callable[..., Server]]:
    """Makes servers on the storage; what the test leaves running is ended. Those of a module that says
    `LEAVES_PATIENTLY` wait for storage at their end as long as tests do."""
    made: list[Server] = []

    def make(*flags: str, app: str | None = None, **environment: str) -> Server:
        one = Server(url=url, folder=tmp_path, flags=flags, environment=environment, registry=storage)
        one.app = app or one.app
        made.append(one)
        return one

    yield leaving_patiently(make) if getattr(request.module, "LEAVES_PATIENTLY", False) else make
    for one in made:
        one.clean_up()


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    """A proxy before PostgreSQL, which can be slow, silent or gone."""
    with FlakyProxy.before(postgres_url) as running:
        yield running


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a user without privileges can write to, whatever pytest's own allow."""
    folder = Path(tempfile.mkdtemp(prefix="qml-mp-test-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)
