"""Tests: a server on SQLite goes on with its firings and retries when the clock is set back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import ROOT, enqueue, wait_for_state, wait_until
from tests.processes.journal import JOURNAL, read_journal


@pytest.mark.fault(88)
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("steps_s", [(-3600.0,), (172800.0, 0.0)], ids=["an-hour-back", "two-days-and-back"])
def test_firings_and_retries_go_on_when_the_clock_is_set_back(
    url: str, storage: Storage, tmp_path: Path, steps_s: tuple[float, ...]
) -> None:
    offset, journal = tmp_path / "offset", tmp_path / "journal"
    set_clock(offset, 0.0)

    def ticks() -> int:
        return sum(line.what == "tick" for line in read_journal(journal))

    command = [sys.executable, "-m", "tests.processes.stepped_clock", url, str(offset)]
    environment = {**os.environ, JOURNAL: str(journal), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as server:
        try:
            storage.upsert_recurring_job(RecurringJob.new("ticks", "* * * * * *", "tick"))
            wait_until(lambda: ticks() >= 2, what="firings")
            job_id = enqueue(storage, "flaky")
            wait_for_state(storage, job_id, StateName.AWAITING_RETRY)

            for step_s in steps_s:
                set_clock(offset, step_s)
                fired = ticks()
                wait_until(lambda fired=fired: ticks() >= fired + 3, what="firings by the new time")  # type: ignore[misc]

            wait_for_state(storage, job_id, StateName.SUCCEEDED, within_s=30)
        finally:
            server.send_signal(signal.SIGTERM)
    assert server.returncode == 0


def set_clock(offset: Path, seconds: float) -> None:
    """In one step, so that no reader finds half of it."""
    beside = offset.with_suffix(".new")
    beside.write_text(str(seconds))
    beside.rename(offset)
