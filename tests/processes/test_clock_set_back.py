"""Tests: a server on SQLite goes on with what is due when the clock is set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import ROOT, enqueue, few, state_of, wait_for_state, wait_until
from tests.processes.journal import JOURNAL, read_journal


@pytest.mark.fault(88)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@few("steps_s", [(-3600.0,)], nightly=[((172800.0, 0.0),)])
def test_firings_and_retries_go_on_when_the_clock_is_set_back(
    url: str, storage: Storage, tmp_path: Path, steps_s: tuple[float, ...]
) -> None:
    # Some 8 s: firings, which come each second, and a retry that waits for four.
    offset, journal = tmp_path / "offset", tmp_path / "journal"
    set_clock(offset, 0.0)

    def ticks() -> int:
        return sum(line.what == "tick" for line in read_journal(journal))

    with stepped_server(url, offset, journal):
        storage.upsert_recurring_job(RecurringJob.new("ticks", "* * * * * *", "tick"))
        wait_until(lambda: ticks() >= 2, what="firings")
        job_id = enqueue(storage, "flaky")
        wait_for_state(storage, job_id, StateName.AWAITING_RETRY)

        for step_s in steps_s:
            set_clock(offset, step_s)
            fired = ticks()
            wait_until(lambda fired=fired: ticks() >= fired + 3, what="firings by the new time")  # type: ignore[misc]

        wait_for_state(storage, job_id, StateName.SUCCEEDED)


@pytest.mark.fault(49)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_job_that_a_step_of_the_clock_makes_due_does_not_wait_for_a_poll(
    url: str, storage: Storage, tmp_path: Path
) -> None:
    offset, journal = tmp_path / "offset", tmp_path / "journal"
    set_clock(offset, 0.0)
    with stepped_server(url, offset, journal):
        wait_until(lambda: len(storage.list_workers()) == 1, what="a worker")
        job_id = storage.enqueue(Job.new("tick", at=datetime.now(UTC) + timedelta(hours=1)))
        set_clock(offset, 7200.0)
        wait_for_state(storage, job_id, StateName.SUCCEEDED)


@pytest.mark.fault(49)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_step_of_the_clock_brings_no_running_job_nearer_to_its_limit(
    url: str, storage: Storage, tmp_path: Path
) -> None:
    offset, journal, gate = tmp_path / "offset", tmp_path / "journal", tmp_path / "gate"
    set_clock(offset, 0.0)
    with stepped_server(url, offset, journal):
        job_id = enqueue(storage, "wait_for", gate=str(gate))  # its limit is ten minutes
        wait_until(lambda: read_journal(journal), what="the start")

        set_clock(offset, 3600.0)
        # What is due by the new time only is begun, so the server has turned since.
        later = storage.enqueue(Job.new("tick", at=datetime.now(UTC) + timedelta(minutes=30)))
        wait_until(lambda: state_of(storage, later) is not StateName.SCHEDULED, what="the new time")
        gate.touch()

        job = wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.FAILED)
        assert (job.state_name, job.failures, job.claim_seq) == (StateName.SUCCEEDED, 0, 1)


@contextmanager
def stepped_server(url: str, offset: Path, journal: Path) -> Iterator[None]:
    """A server whose wall clock is off by what the file says; told to stop at the end."""
    command = [sys.executable, "-m", "tests.processes.stepped_clock", url, str(offset)]
    environment = {**os.environ, JOURNAL: str(journal), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as server:
        try:
            yield
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0


def set_clock(offset: Path, seconds: float) -> None:
    """In one step, so that no reader finds half of it."""
    beside = offset.with_suffix(".new")
    beside.write_text(str(seconds))
    beside.rename(offset)
