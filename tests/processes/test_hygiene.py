"""Tests: what a job does to its process does not reach the next job, nor the storage."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from decimal import Context
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.apps_contexts import PRECISION
from tests.processes.apps_faults import HOME
from tests.processes.harness import Server, enqueue, few, is_gone, result_of, wait_for_state, wait_until

MakeServer = Callable[..., Server]
DRAWING = """
import random
import numpy.random
from qml_mp import QmlApp
app = QmlApp()
@app.job()
def draw() -> list[float]:
    return [random.random(), float(numpy.random.random())]
"""
WITH_A_LOOP = """
import asyncio
from qml_mp import QmlApp
app = QmlApp()
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
@app.job()
def plain() -> bool:
    return asyncio.get_event_loop() is loop
@app.job()
async def in_a_loop_of_its_own() -> bool:
    return asyncio.get_running_loop() is not loop
"""
CONTEXTS = "tests.processes.apps_contexts:app"
FAULTS = "tests.processes.apps_faults:app"
LEFTOVERS = "tests.processes.apps_leftovers:app"


@pytest.mark.fault(23)
def test_what_a_job_changes_in_its_process_is_put_back_for_the_next_job(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1").start()
    before = result_of(storage, "surroundings")

    result_of(storage, "unsettle")

    assert result_of(storage, "surroundings") == before
    assert one.stop() == 0


@pytest.mark.fault(23)
def test_what_a_job_changes_is_put_back_for_the_next_job_of_the_same_batch(
    server: MakeServer, storage: Storage
) -> None:
    methods = ["surroundings"] * 20 + ["unsettle", "surroundings"] * 5 + ["surroundings"] * 20
    ids = storage.enqueue_many(Job.new(method) for method in methods)

    one = server("-w", "1").start()

    jobs = [wait_for_state(storage, job_id, StateName.SUCCEEDED) for job_id in ids]
    assert len({json.dumps(job.result) for job in jobs if job.method == "surroundings"}) == 1
    assert one.stop() == 0


@pytest.mark.fault(23)
@few("digits", [28], nightly=[11])
def test_the_decimal_context_and_the_context_variables_of_a_job_are_gone_with_it(
    server: MakeServer, storage: Storage, digits: int
) -> None:
    own = {PRECISION: str(digits)} if digits != 28 else {}
    one = server("-w", "1", app=CONTEXTS, **own).start()
    workers = one.worker_pids()
    seventh = str(Context(prec=digits).divide(1, 7))

    for change in ("change", "change_in_a_task"):
        assert result_of(storage, change) == ["0.143", "another's", change]
        for look in ("look", "look_in_a_task"):
            assert result_of(storage, look) == [seventh, "nobody", look]

    assert one.worker_pids() == workers
    assert one.stop() == 0


@pytest.mark.fault(23)
def test_what_on_failure_sets_in_its_context_is_gone_with_it(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", app=CONTEXTS).start()

    wait_for_state(storage, enqueue(storage, "fail"), StateName.FAILED)
    wait_until(lambda: (one.folder / "told").exists(), what="the call of on_failure")

    assert result_of(storage, "look") == [str(Context().divide(1, 7)), "nobody", "look"]
    assert one.stop() == 0


@pytest.mark.fault(23)
def test_a_timer_that_a_job_leaves_does_not_end_the_next_job(server: MakeServer, storage: Storage) -> None:
    one = server("-w", "1", app=FAULTS).start()

    result_of(storage, "leave_an_alarm", seconds=0.3)
    job_id = enqueue(storage, "nap", seconds=0.6)

    assert wait_for_state(storage, job_id, StateName.SUCCEEDED).claim_seq == 1
    assert one.stop() == 0


@pytest.mark.fault(23)
def test_a_worker_whose_folder_is_removed_works_on_in_it(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "1", app=FAULTS, **{HOME: str(tmp_path / "home")}).start()

    first = result_of(storage, "remove_the_home")

    assert result_of(storage, "quick") == first
    assert one.stop() == 0


def test_a_job_may_use_a_pool_of_processes_which_are_not_its_worker(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=FAULTS).start()

    squares = result_of(storage, "share_the_work")

    assert squares == 285
    assert one.stop() == 0


@pytest.mark.fault(25)
def test_a_transaction_that_a_job_leaves_open_is_its_own_and_holds_up_nobody_for_long(
    server: MakeServer, storage: Storage
) -> None:
    # Some 5 s on SQLite: so long is its lock waited for.
    one = server("-w", "1", app=FAULTS, QML_MP_MAX_CRASHES="1").start()

    job_id = enqueue(storage, "leave_a_transaction")

    job = wait_for_state(storage, job_id, StateName.SUCCEEDED, StateName.FAILED)
    if storage.url.startswith("sqlite:"):  # where it is the only writer that there can be
        assert job.last_error is not None
        assert "left a transaction open" in job.last_error.message
    else:
        assert job.state_name is StateName.SUCCEEDED
    assert result_of(storage, "quick")
    assert storage.job_counts()[StateName.ENQUEUED] == 0  # what was not committed was never enqueued
    assert one.stop() == 0


def test_native_libraries_get_the_workers_share_of_the_cores_unless_the_user_says_otherwise(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", OPENBLAS_NUM_THREADS="7").start()

    told = result_of(storage, "native_threads")

    cores = len(os.sched_getaffinity(0))
    assert told == {"OMP_NUM_THREADS": str(cores), "OPENBLAS_NUM_THREADS": "7"}
    assert one.stop() == 0


@pytest.mark.fault(64)
def test_preloaded_workers_draw_different_random_numbers_of_python_and_of_numpy(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "drawing_app.py").write_text(DRAWING)
    flags = ("-w", "2", "--preload", "--max-jobs", "1")
    one = server(*flags, app="drawing_app:app", PYTHONPATH=str(tmp_path), OPENBLAS_NUM_THREADS="1")
    one.start(ready=2)

    drawn = [result_of(storage, "draw") for _ in range(8)]

    assert len({number for numbers in drawn if isinstance(numbers, list) for number in numbers}) == 16
    assert one.stop() == 0


def test_plain_jobs_find_the_event_loop_of_the_app_after_a_job_with_a_loop_of_its_own(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    (tmp_path / "looping_app.py").write_text(WITH_A_LOOP)
    one = server("-w", "1", app="looping_app:app", PYTHONPATH=str(tmp_path)).start()

    methods = ("plain", "in_a_loop_of_its_own", "plain")
    assert [result_of(storage, method) for method in methods] == [True] * 3
    assert one.stop() == 0


@pytest.mark.fault(57)
def test_a_program_that_a_job_starts_is_ended_by_sigint_which_its_worker_ignores(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=LEFTOVERS).start()
    (worker,) = one.worker_pids().values()
    os.kill(worker, signal.SIGINT)

    assert result_of(storage, "interrupt_a_program") == -signal.SIGINT
    assert result_of(storage, "quick") == worker
    assert one.stop() == 0


@pytest.mark.fault(24)
def test_a_thread_that_a_job_leaves_holds_up_neither_the_next_job_nor_the_exit(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", "--shutdown-timeout", "600", app=FAULTS).start()
    worker = result_of(storage, "leave_a_thread")

    after = result_of(storage, "quick")

    assert after == worker
    one.signal(signal.SIGTERM)
    assert one.wait() == 0


def test_a_worker_in_which_a_job_that_was_ended_has_left_a_thread_takes_no_other(
    server: MakeServer, storage: Storage
) -> None:
    """The thread would go on beside the next attempt."""
    one = server("-w", "1", app=LEFTOVERS, QML_MP_CANCEL_GRACE="0.3", QML_MP_TERM_GRACE="600").start()
    late = Job.new("leave_a_thread_and_sleep", timeout=timedelta(seconds=0.5))

    wait_for_state(storage, storage.enqueue(late), StateName.FAILED)
    (begun,) = one.journal()

    assert result_of(storage, "quick") != begun.pid
    assert is_gone(begun.pid)
    assert one.stop() == 0


@pytest.mark.fault(17)
def test_a_process_that_a_job_leaves_is_killed_when_its_worker_leaves(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1").start()
    grandchild = result_of(storage, "leave_a_grandchild")
    assert isinstance(grandchild, int)
    assert not is_gone(grandchild)

    assert one.stop() == 0

    wait_until(lambda: is_gone(grandchild), what="the death of the grandchild")


@pytest.mark.fault(17)
def test_a_workers_death_is_noticed_at_once_whatever_its_grandchildren_hold_open(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "2", app=FAULTS, QML_MP_MAX_CRASHES="1").start(ready=2)

    job_id = enqueue(storage, "die_beside_a_grandchild")

    wait_for_state(storage, job_id, StateName.FAILED)
    (child,) = (line.what.removeprefix("child ") for line in one.journal() if line.what != "start")
    wait_until(lambda: is_gone(int(child)), what="the death of the grandchild")
    assert one.stop() == 0


@pytest.mark.fault(23)
def test_no_signal_handler_and_no_limit_of_a_job_is_the_next_jobs(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=LEFTOVERS).start()
    before = result_of(storage, "signals_and_limits")

    result_of(storage, "unsettle_more")

    assert result_of(storage, "signals_and_limits") == before
    assert one.stop() == 0


@pytest.mark.fault(23)
def test_what_a_job_sets_for_its_whole_process_is_put_back_for_the_next_job(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=LEFTOVERS).start()
    before = result_of(storage, "settings")

    result_of(storage, "unsettle_settings")

    assert result_of(storage, "settings") == before
    assert one.stop() == 0


@pytest.mark.fault(23)
def test_jobs_after_one_that_configures_logging_are_told_in_the_log(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=LEFTOVERS).start()
    result_of(storage, "configure_logging")

    job_id = enqueue(storage, "quick")

    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    told = f"job {job_id} (quick) attempt 1 succeeded"
    wait_until(lambda: told in one.log(), what=one.log)  # it is told once it is written
    assert one.stop() == 0


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("raise", 1, "LookupError: the copy has no such file"),
        ("exit with 3", 3, "the copy will exit with 3"),
        ("return", 0, "the copy will return"),
    ],
)
def test_a_copy_that_a_job_has_forked_ends_as_any_python_program(
    server: MakeServer, storage: Storage, how: str, code: int, said: str
) -> None:
    one = server("-w", "1", app=LEFTOVERS).start()

    assert result_of(storage, "exit_code_of_a_copy", how=how) == code

    wait_until(lambda: said in one.log(), what=one.log)
    assert one.stop() == 0


@pytest.mark.fault(23)
@pytest.mark.skipif(os.getuid() != 0, reason="a job becomes another user, as only root can")
def test_a_worker_that_a_job_has_made_another_users_for_good_is_replaced(
    server: MakeServer, storage: Storage
) -> None:
    one = server("-w", "1", app=LEFTOVERS).start()
    before = result_of(storage, "settings")
    ids = storage.enqueue_many(Job.new(method) for method in ("change_user", "settings", "change_user"))

    changed, after, changed_again = (wait_for_state(storage, each, StateName.SUCCEEDED) for each in ids)

    assert after.result == before
    assert sorted(line.job_id for line in one.journal()) == sorted([changed.id, changed_again.id])
    assert one.stop() == 0
