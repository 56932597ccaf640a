"""Tests: the record of a crash shows the stack of the job that died, and of no other."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from qml_mp.core.outcome import Attempt
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, wait_for_state, wait_until

MakeServer = Callable[..., Server]
APP = "tests.processes.apps_stacks:app"
DEATHS = few("death", [signal.SIGSEGV], nightly=[signal.SIGKILL])


def fallen(storage: Storage, death: signal.Signals) -> Attempt:
    job_id = enqueue(storage, "fall", signal_number=int(death))
    wait_for_state(storage, job_id, StateName.FAILED)
    (attempt,) = storage.attempts(job_id)
    return attempt


def assert_is_its_own(attempt: Attempt, death: signal.Signals) -> None:
    """No process writes its stack when it is killed by SIGKILL, and each does when it dies of SIGSEGV."""
    assert attempt.process.signal == death
    assert attempt.error is not None
    if death is signal.SIGKILL:
        assert attempt.error.traceback is None
    else:
        told = str(attempt.error.traceback)
        assert told.startswith("Fatal Python error: Segmentation fault")
        assert told.count("most recent call last") == 1
        assert " in fall" in told


@DEATHS
def test_a_death_after_all_stacks_were_printed_tells_nothing_of_the_job_that_ran_then(
    server: MakeServer, storage: Storage, tmp_path: Path, death: signal.Signals
) -> None:
    one = server("-w", "1", app=APP).start()
    job_id = enqueue(storage, "gated", gate=str(tmp_path / "gate"))
    wait_until(one.journal)
    wait_until(lambda: "Worker 1 is ready" in one.log())  # or it would not be asked
    asked = 0

    def is_printed() -> bool:
        """A worker that waits for a processor is printed without a stack."""
        nonlocal asked
        log = one.log()
        if "in gated" not in log and log.count(", gated):") == asked:
            one.signal(signal.SIGUSR1)
            asked += 1
        return "in gated" in log

    wait_until(is_printed, what=one.log)
    (tmp_path / "gate").touch()
    worker = wait_for_state(storage, job_id, StateName.SUCCEEDED).result

    attempt = fallen(storage, death)

    assert attempt.pid == worker
    assert_is_its_own(attempt, death)
    assert one.stop() == 0
