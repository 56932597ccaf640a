"""Tests: what every part of the suite shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.postgres_cluster import throwaway_cluster
from tests.postgres_programs import ClusterError, find_server_programs

URL_VARIABLE = "QML_MP_TEST_URL"
"""Set it to the URL of a database to use instead of a throw-away cluster."""
PART_VARIABLE = "QML_MP_TEST_PART"
"""Set it to "2/3" to run every third test, beginning with the second; `scripts/test` runs all parts."""

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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of this part."""
    part, _, parts = os.environ.get(PART_VARIABLE, "1/1").partition("/")
    kept = items[int(part) - 1 :: int(parts)]
    others = set(items) - set(kept)
    if others:
        config.hook.pytest_deselected(items=[item for item in items if item in others])
        items[:] = kept


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
