"""Tests: what every part of the suite shares."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import xdist
from hypothesis import settings
from psycopg import sql

from tests.loopback import pass_proxies
from tests.migrated_copies import MigratedCopies
from tests.postgres_cluster import URL_VARIABLE, throwaway_cluster
from tests.postgres_programs import ClusterError, find_server_programs
from tests.until import PATIENCE_S
from tests.warm import warm_python

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


_CLUSTER_URL = "postgres_url"
"""Under this name a worker of xdist gets the URL of the cluster that all workers share."""
_cluster = pytest.StashKey[ExitStack]()
_cluster_url = pytest.StashKey[str]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: xdist.workermanage.WorkerController) -> None:
    """In the process that starts the workers of xdist: serve one PostgreSQL cluster for all of them."""
    if os.environ.get(URL_VARIABLE):
        return
    stash = node.config.stash
    if _cluster not in stash:
        stash[_cluster] = stack = ExitStack()
        node.config.add_cleanup(stack.close)  # the server ends with this process in any case
        try:
            stash[_cluster_url] = stack.enter_context(throwaway_cluster())
        except ClusterError as error:
            stash[_cluster_url] = str(error)
    node.workerinput[_CLUSTER_URL] = stash[_cluster_url]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to run what failed once more."""
    failed = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
    names = dict.fromkeys(shlex.quote(re.sub(r"@[\w-]+$", "", report.nodeid)) for report in failed)
    if names:
        terminalreporter.section("run a failed test again", "=")
        for name in names:
            terminalreporter.line(f"scripts/test {name}")


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
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a real PostgreSQL database: `$QML_MP_TEST_URL`, else one of a cluster made for this run.

    The tests of a worker share the database; each uses a schema of its own. Without a server the test fails;
    it is never skipped.
    """
    given = os.environ.get(URL_VARIABLE)
    shared = getattr(request.config, "workerinput", {}).get(_CLUSTER_URL, "")
    if given:
        yield given
    elif shared.startswith("postgresql://"):
        yield _own_database(shared, name=xdist.get_xdist_worker_id(request))
    elif shared:
        pytest.fail(shared, pytrace=False)
    else:
        try:
            with throwaway_cluster() as url:
                yield url
        except ClusterError as error:
            pytest.fail(str(error), pytrace=False)


def _own_database(cluster: str, *, name: str) -> str:
    """Make a database for one worker of xdist, whose tests so see no sessions and locks of others."""
    with psycopg.connect(cluster, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return urlunsplit(urlsplit(cluster)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def migrated_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MigratedCopies]:
    """Makes storages that were migrated, which costs less than to migrate each."""
    with closing(MigratedCopies(tmp_path_factory.mktemp("migrated"))) as copies:
        yield copies
