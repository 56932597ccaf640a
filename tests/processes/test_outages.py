"""Tests: a server whose PostgreSQL cannot be reached any more."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, result_of, wait_for_state, wait_until
from tests.storage.flaky_proxy import FlakyProxy
from tests.storage.helpers import patient_url

APP = "tests.processes.apps_storage_faults:app"
OBSERVED_S = 2.0
"""What is looked at is that nothing is done in this time: there is no fact to wait for."""


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[FlakyProxy]:
    """A proxy before the server."""
    with FlakyProxy.before(postgres_url) as running:
        yield running


@pytest.fixture
def through_proxy(url: str, proxy: FlakyProxy) -> str:
    """The URL of a fresh storage that is reached through the proxy."""
    return proxy.through(url)


@pytest.mark.nightly
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_server_without_storage_waits_and_does_not_spin(
    server: Callable[..., Server], proxy: FlakyProxy, through_proxy: str, tmp_path: Path
) -> None:
    one = server("-w", "1", app=APP)
    one.url = through_proxy
    one.start()
    storage = open_storage(patient_url(through_proxy))
    enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    wait_until(one.journal, what=one.log)
    storage.close()

    proxy.close()
    wait_until(lambda: "is tried again in" in one.log(), what=one.log)
    began, used_s = time.monotonic(), cpu_s(one.pid)
    time.sleep(OBSERVED_S)  # what a process uses in that time is what is measured
    share = (cpu_s(one.pid) - used_s) / (time.monotonic() - began)

    assert share < 0.1  # of a processor; a loop that waits for nothing takes what it gets
    one.signal(signal.SIGQUIT)
    assert one.wait() == 6


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_after_an_outage_a_server_hears_of_commits_although_no_connection_was_cut(
    server: Callable[..., Server], storage: Storage, proxy: FlakyProxy, through_proxy: str
) -> None:
    # Some 8 s: a silent connection is given up after seconds.
    often = {"QML_MP_HEARTBEAT_INTERVAL": "0.5s"}
    never = {"QML_MP_POLLING_INTERVAL": "1h", "QML_MP_SCHEDULER_POLL_INTERVAL": "1h"}
    one = server("-w", "1", app=APP, **often, **never)
    one.url = through_proxy
    one.start()
    assert result_of(storage, "plain") == "plain"

    proxy.go_silent()
    meanwhile = enqueue(storage, "plain")  # whatever hears of it by a connection from before has lost that
    wait_until(lambda: "Storage cannot be reached" in one.log(), what=one.log)
    proxy.speak(cut=False)
    wait_until(lambda: "Storage answers again" in one.log(), what=one.log)
    wait_for_state(storage, meanwhile, StateName.SUCCEEDED)

    # The supervisor has to hear of it, which has no other reason to look for such a job.
    scheduled = storage.enqueue(Job.new("plain", delay=timedelta(seconds=0.2)))

    wait_for_state(storage, scheduled, StateName.SUCCEEDED)
    assert one.stop() == 0


def cpu_s(pid: int) -> float:
    """What the process has used of a processor so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
