"""Tests: what an app's hooks and its import do to the process of a worker harms no job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qml_mp.core.job import Job, new_job_id
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT
from tests.processes.apps_hooks import OWN_HANDLERS
from tests.processes.harness import (
    Server,
    enqueue,
    few,
    is_gone,
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


@pytest.mark.nightly
@HOOKS
@pytest.mark.fault(62)
def test_a_copy_of_the_worker_that_a_hook_lets_return_is_none(
    server: MakeServer, storage: Storage, tmp_path: Path, method: str, hook: str
) -> None:
    one = server("-w", "1", app=APP).start()
    workers = one.worker_pids()

    enqueue(storage, method, act="fork")
    wait_until(lambda: len(lines(tmp_path)) == 2, what=one.log)
    copy = next(int(line.split()[1]) for line in lines(tmp_path) if line.startswith("copy"))

    wait_until(lambda: is_gone(copy), what="the end of the copy")
    assert [result_of(storage, "look") for _ in range(3)]
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
