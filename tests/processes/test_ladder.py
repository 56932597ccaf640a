"""Tests: time limits and cancels, on jobs that go along with them and on jobs that do not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import Deleted, Failed, StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, CancelResult
from tests.cli.command import Qml
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    is_gone,
    wait_for_state,
    wait_until,
)
from tests.storage.helpers import patient_url

LEAVES_PATIENTLY = True
MakeServer = Callable[..., Server]
LEFTOVERS = "tests.processes.apps_leftovers:app"
QUICK = {"QML_MP_CANCEL_GRACE": "0.3", "QML_MP_TERM_GRACE": "0.5"}
PATIENT = {**QUICK, "QML_MP_TERM_GRACE": "600"}
"""For jobs that give way, however late their process gets a processor."""
LATE = {**QUICK, "QML_MP_CANCEL_GRACE": "1.5"}
"""For jobs that do not: however late they begin, nothing ends them where they are interrupted."""
LATE_AND_PATIENT = {**LATE, "QML_MP_TERM_GRACE": "600"}
"""For jobs that give way at their limit, however late they begin."""


def with_limit(storage: Storage, method: str, **arguments: float) -> str:
    return storage.enqueue(Job.new(method, dict(arguments), timeout=timedelta(seconds=0.5)))


@few("method, arguments", [("spin", {})], nightly=[("nap", {"seconds": 60.0})])
def test_a_job_past_its_limit_unwinds_through_finally_and_is_recorded_as_a_timeout(
    server: MakeServer, storage: Storage, method: str, arguments: dict[str, float]
) -> None:
    one = server("-w", "1", **LATE_AND_PATIENT).start()
    workers = one.worker_pids()

    job_id = with_limit(storage, method, **arguments)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    assert [line.what for line in one.journal()] == ["start", "end"]
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.TIMEOUT
    assert (job.failures, job.crashes) == (1, 0)
    assert one.worker_pids() == workers  # the worker lives on
    assert one.stop() == 0


@pytest.mark.fault(13)
@pytest.mark.fault(14)
@pytest.mark.fault(15)
@few("method", ["spin_in_c", "deaf", "parent_of_the_stubborn"], nightly=["stubborn"])
def test_a_job_past_its_limit_that_does_not_handle_is_killed_and_recorded_as_a_timeout(
    server: MakeServer, storage: Storage, method: str
) -> None:
    one = server("-w", "1", **LATE).start()

    job_id = with_limit(storage, method)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.TIMEOUT
    assert (job.failures, job.crashes) == (1, 0)
    lines = one.journal()
    assert method == "parent_of_the_stubborn" or is_gone(lines[0].pid)
    for line in lines:
        if line.what.startswith("child "):
            child = int(line.what.removeprefix("child "))
            wait_until(partial(is_gone, child), what="the death of the subprocess")
    wait_until(lambda: len(one.worker_pids()) == 1, what="a worker")
    assert one.stop() == 0


@pytest.mark.fault(15)
def test_a_kill_for_a_time_limit_keeps_the_stack_of_c_code_that_holds_the_lock(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", **{**LATE, "QML_MP_TERM_GRACE": "2"}).start()

    for _ in range(5):  # a worker that gets no processor for a second is killed without its stack
        job_id = with_limit(storage, "spin_in_c")
        wait_for_state(storage, job_id, StateName.FAILED)
        (attempt,) = storage.attempts(job_id)
        assert attempt.error is not None
        stack = attempt.error.traceback
        if stack is not None:
            break
    assert stack is not None
    assert "in spin_in_c" in stack
    assert attempt.process.signal == signal.SIGKILL
    assert one.stop() == 0


@pytest.mark.nightly
def test_a_job_whose_limit_passed_while_everything_stood_still_is_asked_first(
    server: MakeServer, storage: Storage
) -> None:
    graces = {"QML_MP_CANCEL_GRACE": "3", "QML_MP_TERM_GRACE": "0.2"}
    one = server("-w", "1", **graces).start()
    job_id = with_limit(storage, "heed")
    wait_until(one.journal, what=one.log)
    (worker,) = one.worker_pids().values()
    began_at = time.monotonic()

    for pid in (one.pid, worker):
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: time.monotonic() - began_at > 4, what="the end of all that the ladder allows")
    for pid in (worker, one.pid):
        os.kill(pid, signal.SIGCONT)

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.FAILED)
    assert (job.state_name, job.result) == (StateName.SUCCEEDED, "timeout")
    assert one.stop() == 0


def test_a_cancel_reaches_a_running_job_through_storage(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", QML_MP_CANCEL_GRACE="600").start()
    job_id = enqueue(storage, "heed")
    wait_until(lambda: one.journal())

    result = storage.request_cancel(job_id, reason="no longer wanted", retention=BY_DEFAULT)

    assert result is CancelResult.REQUESTED
    # The job heeds the token and returns, so it has succeeded: there was nothing left to cancel.
    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).result == "cancelled"
    assert one.stop() == 0


def deleted_by_a_cancel(one: Server, storage: Storage, method: str) -> Job:
    """A job that was cancelled while it ran: Deleted with the reason, and charged nothing."""
    job_id = enqueue(storage, method)
    wait_until(lambda: one.journal())

    storage.request_cancel(job_id, reason="no longer wanted", retention=BY_DEFAULT)

    job = wait_for_state(storage, job_id, StateName.DELETED, StateName.FAILED)
    assert isinstance(job.state, Deleted)
    assert job.state.reason == "no longer wanted"
    assert (job.failures, job.crashes) == (0, 0)
    return job


@few("method", ["spin", "spin_in_c"], nightly=["deaf"])
def test_a_cancelled_job_that_does_not_handle_is_ended_and_deleted_with_the_reason(
    server: MakeServer, storage: Storage, method: str
) -> None:
    one = server("-w", "1", **QUICK).start()

    job = deleted_by_a_cancel(one, storage, method)

    (attempt,) = storage.attempts(job.id)
    assert attempt.kind is AttemptKind.CANCELLED
    wait_until(lambda: len(one.worker_pids()) == 1, what="a worker")
    assert one.stop() == 0


def test_cancel_from_the_command_line_waits_for_the_end(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", **QUICK).start()
    job_id = enqueue(storage, "spin")
    one.wait_until_running(job_id)

    command = ("--url", patient_url(one.url), "jobs", "cancel", job_id, "--wait", "--reason", "x")
    done = Qml(folder=tmp_path)(*command)

    assert done.code == 0, done.err
    job = storage.get(job_id)
    assert job is not None
    assert isinstance(job.state, Deleted)
    assert one.stop() == 0


@pytest.mark.fault(11)
@few("name", ["SystemExit"], nightly=["KeyboardInterrupt", "GeneratorExit"])
def test_whatever_a_job_raises_is_a_failure_and_the_worker_survives(
    server: MakeServer, storage: Storage, name: str
) -> None:
    one = server("-w", "1").start()
    workers = one.worker_pids()

    job = wait_for_state(storage, enqueue(storage, "raise_base", name=name), StateName.FAILED)

    assert isinstance(job.state, Failed)
    assert job.state.exception is not None
    assert job.state.exception.type == name
    assert one.worker_pids() == workers
    assert one.stop() == 0


def test_a_cancel_reaches_all_threads_of_a_job(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", app=LEFTOVERS, QML_MP_CANCEL_GRACE="600").start()
    job_id = enqueue(storage, "wait_in_threads", threads=4)
    wait_until(lambda: len(one.journal()) == 1, what="the start")

    storage.request_cancel(job_id, reason="enough", retention=BY_DEFAULT)

    job = wait_for_state(storage, job_id, StateName.DELETED)
    assert (job.failures, job.crashes) == (0, 0)
    assert one.stop() == 0


NO_HANDLER = few("method", ["exit_at_sigterm"], nightly=["take_sigterm_away", "become_another_program"])
"""Jobs that die of the SIGTERM which would have interrupted them, or end their process at it."""


@pytest.mark.fault(13)
@NO_HANDLER
def test_a_job_that_dies_of_the_interruption_for_its_limit_is_recorded_as_a_timeout(
    server: MakeServer, storage: Storage, method: str
) -> None:
    one = server("-w", "1", app=LEFTOVERS, **LATE_AND_PATIENT).start()

    job_id = with_limit(storage, method)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    exits = method == "exit_at_sigterm"
    assert (attempt.kind, attempt.process.signal) == (AttemptKind.TIMEOUT, None if exits else signal.SIGTERM)
    assert attempt.process.exit_code == (143 if exits else None)
    assert (job.failures, job.crashes) == (1, 0)
    assert one.stop() == 0


@NO_HANDLER
def test_a_job_that_dies_of_the_interruption_for_a_cancel_is_deleted(
    server: MakeServer, storage: Storage, method: str
) -> None:
    one = server("-w", "1", app=LEFTOVERS, QML_MP_MAX_CRASHES="1", **PATIENT).start()

    job = deleted_by_a_cancel(one, storage, method)

    assert [attempt.kind for attempt in storage.attempts(job.id)] == [AttemptKind.CANCELLED]
    assert one.stop() == 0


@NO_HANDLER
def test_a_job_that_dies_of_the_interruption_for_a_stop_runs_again_uncharged(
    server: MakeServer, storage: Storage, method: str
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "3", app=LEFTOVERS, QML_MP_MAX_CRASHES="1").start()
    job_id = enqueue(storage, method)
    wait_until(lambda: one.journal())

    assert one.stop() == 6

    job = wait_for_state(storage, job_id, StateName.ENQUEUED)
    assert (job.failures, job.crashes) == (0, 0)


@pytest.mark.nightly
def test_a_job_that_dies_of_the_sigterm_which_a_service_manager_sends_to_all_runs_again_uncharged(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "600", app=LEFTOVERS, QML_MP_MAX_CRASHES="1").start()
    job_id = enqueue(storage, "take_sigterm_away")
    wait_until(lambda: one.journal())

    one.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in one.log().lower(), what="the beginning of the stop")
    os.kill(one.journal()[0].pid, signal.SIGTERM)

    assert one.wait() == 6
    job = wait_for_state(storage, job_id, StateName.ENQUEUED)
    assert (job.failures, job.crashes) == (0, 0)


def test_a_sigterm_of_somebody_else_is_a_crash_of_the_job_that_dies_of_it(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=LEFTOVERS, QML_MP_MAX_CRASHES="1").start()
    job_id = enqueue(storage, "take_sigterm_away")
    wait_until(lambda: one.journal())

    os.kill(one.journal()[0].pid, signal.SIGTERM)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    assert (job.failures, job.crashes) == (0, 1)
    assert one.stop() == 0


RAISING = few(
    "method, raised",
    [("clean_up_badly", "OSError: the connection is closed")],
    nightly=[
        ("clean_up_badly_in_a_task", "OSError: the connection is closed"),
        ("wrap_errors", "RuntimeError: the task failed"),
        ("leave_at_sigterm", "SystemExit: 1"),
    ],
)
"""Jobs that raise something else when they are interrupted."""


@RAISING
def test_a_job_whose_clean_up_fails_at_its_limit_is_recorded_as_a_timeout(
    server: MakeServer, storage: Storage, method: str, raised: str
) -> None:
    one = server("-w", "1", app=LEFTOVERS, **LATE_AND_PATIENT).start()

    job_id = with_limit(storage, method)

    job = wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.TIMEOUT
    assert attempt.error is not None
    assert attempt.error.type == "JobTimeout"
    assert attempt.error.message.endswith(raised)
    assert (job.failures, job.crashes) == (1, 0)
    assert one.stop() == 0


@RAISING
def test_a_job_whose_clean_up_fails_when_it_is_cancelled_is_deleted(
    server: MakeServer, storage: Storage, method: str, raised: str
) -> None:
    one = server("-w", "1", app=LEFTOVERS, **PATIENT).start()

    deleted_by_a_cancel(one, storage, method)

    assert f"was ended (cancelled), and raised {raised}" in one.log()
    assert one.stop() == 0


@RAISING
def test_a_job_whose_clean_up_fails_at_a_stop_runs_again_uncharged(
    server: MakeServer, storage: Storage, method: str, raised: str
) -> None:
    # A quarter of it is for unwinding, however late the process gets a processor.
    one = server("-w", "1", "--shutdown-timeout", "4", app=LEFTOVERS, QML_MP_TERM_GRACE="3").start()
    job_id = enqueue(storage, method)
    wait_until(lambda: one.journal())

    one.stop()

    job = wait_for_state(storage, job_id, StateName.ENQUEUED, StateName.FAILED)
    assert (job.state_name, job.failures, job.crashes) == (StateName.ENQUEUED, 0, 0)


def test_a_job_that_swallows_its_interruption_and_fails_later_has_failed(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=LEFTOVERS, **LATE_AND_PATIENT).start()

    job_id = with_limit(storage, "fail_after_swallowing")

    wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    assert attempt.kind is AttemptKind.FAILURE
    assert attempt.error is not None
    assert (attempt.error.type, attempt.error.message) == ("ValueError", "of its own")
    assert one.stop() == 0
