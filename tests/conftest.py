"""Tests: what every part of the suite shares."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby

import pytest
from hypothesis import settings

from tests.migrated_copies import MigratedCopies
from tests.postgres_cluster import URL_VARIABLE, throwaway_cluster
from tests.postgres_programs import ClusterError, find_server_programs
from tests.warm import warm_python

QUEUE_VARIABLE = "QML_MP_TEST_QUEUE"
"""Set it to an empty file, the same for several runs: each test is run by the first of them that is free."""

# No timing is judged: on a busy machine an example may take as long as it likes.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
# For long runs: pytest --hypothesis-profile=soak
settings.register_profile("soak", max_examples=1000, stateful_step_count=80, deadline=None, print_blob=True)


def pytest_configure() -> None:
    """Ctrl-C reaches the programs that tests start also when a shell runs the suite in the background,
    which has it ignored by all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Which PostgreSQL the run uses. A URL is not shown, because it may hold a password."""
    if os.environ.get(URL_VARIABLE):
        return f"PostgreSQL: the database of ${URL_VARIABLE}"
    try:
        return f"PostgreSQL: {find_server_programs().describe()}"
    except ClusterError as error:
        return f"PostgreSQL: {error}"


def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run what no other run has taken. The slow tests come first (tests/processes), so all end together."""
    queue = os.environ.get(QUEUE_VARIABLE)
    if not queue or session.testsfailed or session.config.option.collectonly:
        return None  # pytest's own loop
    taken = _take_from(queue, session.items)
    item = next(taken, None)
    while item is not None:
        following = next(taken, None)  # pytest keeps those fixtures that it shares with this one
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        item = following
    return True


def _take_from(queue: str, items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    """Those that nobody else takes. In the queue: how many groups are taken, and of which list."""
    whole = hashlib.sha256("\n".join(item.nodeid for item in items).encode()).hexdigest()
    groups = [list(group) for _, group in groupby(items, key=_shared_with)]
    while True:
        with open(queue, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            number, _, of = file.read().partition(" ")
            if of not in ("", whole):
                raise pytest.UsageError("The runs that share the tests have not collected the same ones.")
            taken = int(number or 0)
            file.seek(0)
            file.write(f"{taken + 1} {whole}")
        if taken >= len(groups):
            return
        yield from groups[taken]


def _shared_with(item: pytest.Item) -> object:
    """Equal for neighbours that share what their module makes once, a browser or a page that is served: one
    run takes them all, or each run would make its own."""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009  # pytest tells it nowhere else
    shared = [name for name, (*_, own) in definitions.items() if own.scope == "module"]
    numbers = item.callspec.indices if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return (item.path, [numbers.get(name) for name in sorted(shared) if name in numbers]) if shared else item


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[None]:
    """Commands of this run are copies of one process."""
    with warm_python():
        yield


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
