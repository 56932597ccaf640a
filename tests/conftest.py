"""Tests: what every part of the suite shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.postgres_cluster import ClusterError, throwaway_cluster

# For long runs: pytest --hypothesis-profile=soak
settings.register_profile("soak", max_examples=1000, stateful_step_count=80, deadline=None, print_blob=True)


def pytest_configure() -> None:
    """Ctrl-C reaches the programs that tests start also when a shell runs the suite in the background,
    which has it ignored by all that it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a real PostgreSQL database: `$QML_MP_TEST_URL`, else a cluster for this run.

    The tests share the database; each uses a schema of its own. Fails, and never skips, when there
    is no server to be had.
    """
    given = os.environ.get("QML_MP_TEST_URL")
    if given:
        yield given
        return
    try:
        with throwaway_cluster() as url:
            yield url
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)
