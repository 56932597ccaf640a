"""Tests: what every part of the suite shares."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import closing

import pytest
from hypothesis import settings

from tests.loopback import pass_proxies
from tests.migrated_copies import MigratedCopies
from tests.parts import pytest_runtestloop, pytest_sessionfinish
from tests.postgres_cluster import URL_VARIABLE, throwaway_cluster
from tests.postgres_programs import ClusterError, find_server_programs
from tests.until import PATIENCE_S
from tests.warm import warm_python

__all__ = ["pytest_runtestloop", "pytest_sessionfinish"]

# No timing is judged: on a busy machine an example may take as long as it likes.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
# For long runs: pytest --hypothesis-profile=soak
settings.register_profile("soak", max_examples=1000, stateful_step_count=80, deadline=None, print_blob=True)


def pytest_configure() -> None:
    """Ctrl-C reaches the programs that tests start also when a shell runs the suite in the background,
    which has it ignored by all that it starts. No proxy is asked for what is here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    pass_proxies()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """numpy makes threads as it is imported, and tests fork workers from this process. The programs that
    they start are as they are for users."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OPENBLAS_NUM_THREADS", "1")
        return (yield)


def pytest_report_header() -> str:
    """Which PostgreSQL the run uses. A URL is not shown, because it may hold a password."""
    if os.environ.get(URL_VARIABLE):
        return f"PostgreSQL: the database of ${URL_VARIABLE}"
    try:
        return f"PostgreSQL: {find_server_programs().describe()}"
    except ClusterError as error:
        return f"PostgreSQL: {error}"


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[None]:
    """Commands of this run are copies of one process."""
    with warm_python():
        yield


@pytest.fixture(autouse=True)
def no_thread_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Of a test in this process: tests that come later fork workers from it, which another thread forbids.
    Those of a browser last for all tests of a module."""
    before = threading.enumerate()
    yield
    for thread in threading.enumerate():
        if thread not in before and "browser" not in request.path.parts:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"The test has left the thread {thread.name!r}."


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real PostgreSQL database: `$QML_MP_TEST_URL`, else a cluster for this run.

    The tests share the database; each uses a schema of its own. Fails, and never skips, when there
    is no server to be had.
    """
    given = os.environ.get(URL_VARIABLE)
    if given:
        yield given
        return
    try:
        with throwaway_cluster() as url:
            yield url
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def migrated_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MigratedCopies]:
    """Makes storages that were migrated, which costs less than to migrate each."""
    with closing(MigratedCopies(tmp_path_factory.mktemp("migrated"))) as copies:
        yield copies
