"""Tests: names and errors, whatever they hold, forge no line of a server's log and steer no terminal."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.apps_names import METHOD, NASTY
from tests.processes.harness import Server, wait_for_state, wait_until

MakeServer = Callable[..., Server]
APP = "tests.processes.apps_names:app"


@pytest.mark.fault(86)
def test_every_line_of_the_log_is_a_record_of_ours_or_marked_as_its_continuation(
    server: MakeServer, storage: Storage
) -> None:
    storage.upsert_recurring_job(RecurringJob.new(f"template {NASTY}", "* * * * * *", METHOD))
    one = server("-w", "1", app=APP).start()

    wait_for_state(storage, storage.enqueue(Job.new(METHOD)), StateName.FAILED)
    wait_until(lambda: "has fired" in one.log())
    running = storage.enqueue(Job.new(METHOD, {"seconds": 60}))
    wait_for_state(storage, running, StateName.PROCESSING)
    one.signal(signal.SIGUSR1)
    wait_until(lambda: "most recent call last" in one.log())
    one.signal(signal.SIGQUIT)
    one.wait()

    log = one.log()
    lines = log.removesuffix("\n").split("\n")
    assert not {char for char in log if char != "\n" and not char.isprintable()}
    assert [line for line in lines if not line.startswith(("qml-mp: ", "  | "))] == []
    assert [line for line in lines if line.startswith("qml-mp: FORGED")] == []
    assert [line for line in lines if line.startswith("  | qml-mp: FORGED \\x1b[2J\\x9b31m\\r\\u202e\\u2028")]


@pytest.mark.fault(86)
def test_the_title_of_a_process_is_one_line_of_printable_text(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", app=APP).start()
    storage.enqueue(Job.new(METHOD, {"seconds": 60}))

    (pid,) = one.worker_pids().values()

    title = wait_until(lambda: shown if "evil" in (shown := title_of(pid)) else None)
    assert title.isprintable()
    assert "work evil\\nqml-mp: FORGED \\x1b[2J\\x9b31m\\r\\u202e\\u2028" in title
    one.signal(signal.SIGQUIT)
    one.wait()


def title_of(pid: int) -> str:
    """What `ps` shows of the process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
