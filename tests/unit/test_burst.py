"""Tests: a burst leaves although there is what it can never do, and says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import timedelta
from typing import Any

import pytest

from qml_mp.child.source import AppFacts, NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.outcome import Failure, Outcome, Retry
from qml_mp.settings import DEFAULT_QUEUE, ServerConfig
from qml_mp.storage.store import Storage
from qml_mp.supervisor.loops.burst import BurstLoop
from qml_mp.supervisor.loops.settle import SettleLoop
from qml_mp.supervisor.run import Run
from tests.storage.helpers import KEEP, NO, fetch, register
from tests.unit.stand_ins import stand_in_of

MakeRun = Callable[..., Run]


@pytest.fixture
def idle_run(storage: Storage) -> Iterator[MakeRun]:
    """Makes servers with one worker, which is idle."""
    with ExitStack() as stack:

        def make(facts: AppFacts, **settings: Any) -> Run:
            config = ServerConfig(worker_count=1, **settings)
            run = Run(config, NamedProgram(spec="an:app"), url=storage.url, facts=facts)
            stack.enter_context(closing(run.pool))
            run.registration.register(storage)
            stack.enter_context(stand_in_of(run)).ready_at = 0.0
            return run

        yield make


def end_a_job_as(outcome: Outcome, storage: Storage) -> None:
    storage.enqueue(Job.new("work"))
    claim = storage.fetch_and_lock_job(fetch(DEFAULT_QUEUE, worker="worker-1", server="server#1"))
    assert claim is not None
    storage.finish(claim, outcome, retention=KEEP)


def burst(run: Run, storage: Storage) -> bool:
    """Whether it leaves at its look."""
    BurstLoop(run, settling=SettleLoop(run), wait=timedelta()).run(storage)
    return run.stop.has_begun


def test_calls_for_failed_jobs_keep_a_burst_only_while_its_program_has_a_function_for_them(
    storage: Storage, idle_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    register(storage, "server#1", "worker-1")
    storage.declare_hooks(["work"], calls=True, traces=False)
    end_a_job_as(Failure(error=NO), storage)
    storage.declare_hooks(["work"], calls=False, traces=False)

    kept = idle_run(AppFacts(methods=("work",), wants_failures=True))
    free = idle_run(AppFacts(methods=("work",)))

    assert (burst(kept, storage), burst(free, storage)) == (False, True)
    assert "Left: calls for jobs that have failed" in caplog.text


def test_a_job_that_is_due_keeps_a_burst_only_where_that_has_a_scheduler(
    storage: Storage, idle_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    register(storage, "server#1", "worker-1")
    end_a_job_as(Retry(error=NO, delay=timedelta()), storage)

    kept = idle_run(AppFacts(methods=("work",)))
    free = idle_run(AppFacts(methods=("work",)), enable_scheduler=False)

    assert (burst(kept, storage), burst(free, storage)) == (False, True)
    assert "Left: 1 job due now, as this server has no scheduler" in caplog.text
