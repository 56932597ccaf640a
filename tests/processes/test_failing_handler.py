"""Tests: whatever a logging handler of the app raises, jobs are claimed, and dead workers are replaced and
settled."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from qml_mp.core.job import Job
from qml_mp.core.outcome import AttemptKind
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until

MakeServer = Callable[..., Server]
APP = "tests.processes.apps_failing_handler:app"
FAILED = "A subscriber failed at "


def test_a_handler_that_fails_holds_up_neither_claims_nor_kills_nor_reaping(
    server: MakeServer, storage: Storage
) -> None:
    # With --preload the supervisor has it too.
    one = server("-w", "2", "--preload", app=APP, QML_MP_CANCEL_GRACE="0.1", QML_MP_TERM_GRACE="0.1")
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
