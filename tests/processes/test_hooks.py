"""Tests: what an app's hooks, its handlers and its import do harms no job, and each failure is told, whoever
is killed meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from qml_mp.core.job import Job, new_job_id
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT
from tests.processes.apps_hooks import OWN_HANDLERS
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    is_stopped,
    result_of,
    state_of,
    wait_for_state,
    wait_until,
)

MakeServer = Callable[..., Server]
APP = "tests.processes.apps_hooks:app"
HOOKS = few(
    "method, hook",
    [("begins", "on_state_change")],
    nightly=[("succeeds", "on_state_change"), ("fails", "on_failure")],
)


def lines(folder: Path) -> list[str]:
    """What the hooks have written."""
    file = folder / "hooks"
    return file.read_text().splitlines() if file.exists() else []


@HOOKS
@pytest.mark.fault(62)
def test_what_a_hook_changes_is_put_back_for_the_next_job(
    server: MakeServer, storage: Storage, tmp_path: Path, method: str, hook: str
) -> None:
    one = server("-w", "1", app=APP).start()
    workers = one.worker_pids()
    before = result_of(storage, "look")

    enqueue(storage, method, act="unsettle")
    wait_until(lambda: lines(tmp_path), what=one.log)

    assert [result_of(storage, "look") for _ in range(3)] == 3 * [before]
    assert lines(tmp_path) == [hook]
    assert one.worker_pids() == workers
    assert one.stop() == 0


@HOOKS
@pytest.mark.fault(62)
def test_a_worker_of_which_a_hook_closes_the_descriptors_is_replaced_and_says_why(
    server: MakeServer, storage: Storage, tmp_path: Path, method: str, hook: str
) -> None:
    one = server("-w", "1", app=APP, QML_MP_MAX_CRASHES="1").start()

    enqueue(storage, method, act="close")
    wait_until(lambda: "closed or replaced descriptors of the worker" in one.log(), what=one.log)

    assert result_of(storage, "look")
    assert one.stop() == 0


@pytest.mark.fault(1)
def test_a_hook_that_ends_the_worker_when_a_job_has_succeeded_is_not_charged_to_the_next_job(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    jobs = [Job.new("succeeds", {"act": "die"}), Job.new("look")]
    ids = storage.enqueue_many(replace(job, id=new_job_id()) for job in jobs * 3)

    one = server("-w", "1", app=APP, QML_MP_MAX_CRASHES="1").start(ready=None)

    for job_id in ids:
        assert wait_for_state(storage, job_id, StateName.SUCCEEDED).crashes == 0
    assert set(lines(tmp_path)) == {
        "on_state_change"
    }  # of two that are written together it ends the first alone
    assert one.stop() == 0


@pytest.mark.fault(56)
def test_a_handler_that_the_import_installs_does_not_take_the_interruption_away(
    server: MakeServer, storage: Storage
) -> None:
    quick = {"QML_MP_CANCEL_GRACE": "100ms", "QML_MP_TERM_GRACE": "600"}  # interrupted soon, and not killed
    one = server("-w", "1", app=APP, **{OWN_HANDLERS: "1", **quick}).start()
    job_id = enqueue(storage, "nap")
    wait_until(one.journal, what=one.log)

    storage.request_cancel(job_id, reason="enough", retention=BY_DEFAULT)

    job = wait_for_state(storage, job_id, StateName.DELETED, StateName.FAILED, StateName.SUCCEEDED)
    assert (job.state_name, job.failures, job.crashes) == (StateName.DELETED, 0, 0)
    assert [line.what for line in one.journal()] == ["start", "JobInterrupted"]
    assert one.stop() == 0


@pytest.mark.fault(12)
def test_an_import_that_enables_the_fault_handler_leaves_the_stack_of_a_crash_in_the_attempt(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=APP, **{OWN_HANDLERS: "1"}).start()

    job = wait_for_state(storage, enqueue(storage, "segfault"), StateName.FAILED)

    assert job.last_error is not None
    assert "in segfault" in str(job.last_error.traceback)
    assert state_of(storage, job.id) is StateName.FAILED
    assert one.stop() == 0


WITH_CALLS = "tests.processes.apps_failures:app"


def told(folder: Path) -> list[list[str]]:
    """Of each call: the job, its state, the error's type, the caller's pid."""
    file = folder / "told"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@few("failpoint, calls", [("callback.called=kill", 2)], nightly=[("callback.taken=kill", 1)])
def test_a_job_whose_process_died_is_told_by_another_although_that_is_killed_too(
    server: MakeServer, storage: Storage, tmp_path: Path, failpoint: str, calls: int
) -> None:
    one = server("-w", "2", app=WITH_CALLS)
    one.program = ("-m", "tests.failpoints", f"{failpoint}@{tmp_path / 'mark'}")
    one.start(ready=2)

    job_id = enqueue(storage, "dies")

    assert wait_for_state(storage, job_id, StateName.FAILED).crashes == 1
    wait_until(lambda: len(told(tmp_path)) >= calls, what=one.log)
    lines = told(tmp_path)
    assert [line[:3] for line in lines] == calls * [[job_id, "failed", "WorkerCrashed"]]
    assert len({line[3] for line in lines}) == calls
    assert (tmp_path / "mark").exists()
    assert one.stop() == 0


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_what_a_killed_server_had_to_tell_the_next_one_tells(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app=WITH_CALLS)
    one.program = ("-m", "tests.failpoints", f"callback.taken=stop@{tmp_path / 'mark'}")
    one.start()
    worker = one.worker_pids()[1]
    job_id = enqueue(storage, "fails")
    wait_until((tmp_path / "mark").exists)
    wait_until(lambda: is_stopped(worker))
    one.clean_up()
    before = told(tmp_path)

    two = server("-w", "1", "--burst", app=WITH_CALLS).start(ready=None)

    assert two.wait() == 0
    assert before == []
    assert [line[:3] for line in told(tmp_path)] == [[job_id, "failed", "ValueError"]]


WITH_FAILING_HANDLER = "tests.processes.apps_failing_handler:app"
FAILED = "A subscriber failed at "


def test_a_handler_that_fails_holds_up_neither_claims_nor_kills_nor_reaping(
    server: MakeServer, storage: Storage
) -> None:
    # With --preload the supervisor has it too.
    one = server(
        "-w", "2", "--preload", app=WITH_FAILING_HANDLER, QML_MP_CANCEL_GRACE="0.1", QML_MP_TERM_GRACE="0.1"
    )
    one.start(ready=2)

    crashing_id = enqueue(storage, "die_at_most_twice")
    endless_id = storage.enqueue(Job.new("stubborn", {}, max_retries=0, timeout=timedelta(seconds=0.2)))
    ids = [enqueue(storage, "quick") for _ in range(40)]

    for job_id in ids:
        wait_for_state(storage, job_id, StateName.SUCCEEDED)
    crashed = wait_for_state(storage, crashing_id, StateName.FAILED)
    late = wait_for_state(storage, endless_id, StateName.FAILED)
    assert (crashed.crashes, crashed.failures) == (2, 0)
    assert [attempt.kind for attempt in storage.attempts(late.id)] == [AttemptKind.TIMEOUT]
    wait_until(lambda: len(one.worker_pids()) == 2, what="the replacements")
    assert one.stop() == 0
    # Once in the supervisor, and in each of its five workers at most once.
    assert 1 <= one.log().count(FAILED) <= 6
