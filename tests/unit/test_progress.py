"""Tests: how far a job says that it has come, from the job to whoever reads it."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from qml_mp.core.job import ClaimKey, Job
from qml_mp.core.outcome import Cancelled, Failure, Outcome, Retry, extras_of
from qml_mp.core.progress import Progress, progress_of
from qml_mp.errors import JobInterrupted
from qml_mp.ipc.progress import ProgressCell
from qml_mp.ipc.slot import SlotTable
from qml_mp.processing.cancel import CancelReason, CancelToken
from qml_mp.processing.context import WorkerContext, WorkerResult
from tests.unit.processor_case import cancelled, claim_of, error_of, processor_of


def both_ends() -> tuple[ProgressCell, ProgressCell]:
    """A worker's, and as its supervisor sees it, in a table of several."""
    slots = SlotTable(3)
    return slots.writer(1).progress, slots.progress(1)


def key_of(job: Job) -> ClaimKey:
    return ClaimKey(job_id=job.id, claim_seq=job.claim_seq)


def run_with(cell: ProgressCell, function: Any, cancel: CancelToken | None = None) -> Outcome:
    processor = processor_of(function, progress=cell)
    return processor.run(processor.resolve(claim_of()), cancel or CancelToken.never())


@pytest.mark.parametrize(
    "said",
    [
        Progress(done=3, total=10, note="crops"),
        Progress(done=0.5),
        Progress(done=0, total=0, note=""),
        Progress(done=2**53, total=2**53, note="ä" * 150),
    ],
)
def test_what_a_job_says_is_read_as_it_was(said: Progress) -> None:
    worker, supervisor = both_ends()
    job = replace(Job.new("f"), claim_seq=7)
    assert supervisor.read() is None

    worker.show(job, said.done, said.total, said.note)

    assert supervisor.read() == (key_of(job), said)
    assert worker.newest_of(job) == said
    assert progress_of(said.to_json()) == said


def test_what_is_being_written_and_what_makes_no_sense_is_not_read() -> None:
    slots = SlotTable(1)
    worker, supervisor = slots.writer(0).progress, slots.progress(0)
    worker.show(Job.new("f"), 1, None, "")

    supervisor._numbers[supervisor._version_at] += 1
    assert supervisor.read() is None
    supervisor._numbers[supervisor._version_at] += 1
    assert supervisor.read() is not None
    worker.show(Job.new("f"), math.nan, None, "")  # by other means than `ctx.progress`
    assert supervisor.read() is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((1,), Progress(done=1)),
        ((True, 2.5, "a"), Progress(done=1, total=2.5, note="a")),
        ((Decimal("1.5"), 3), Progress(done=1.5, total=3)),
        ((5, 4), Progress(done=5, total=4)),
        ((1, None, "\ud800\0"), Progress(done=1, note="?\0")),
    ],
)
def test_the_outcome_carries_what_was_said_last(given: tuple[Any, ...], said: Progress) -> None:
    worker, _ = both_ends()

    def f(ctx: WorkerContext) -> None:
        ctx.progress(0, 1, "begin")
        ctx.progress(*given)

    extras = extras_of(run_with(worker, f))

    assert extras is not None
    assert (extras.progress, extras.follow_ups) == (said, ())


@pytest.mark.parametrize(
    "given",
    [(-1,), (math.nan,), (math.inf,), ("1",), (None,), (1, "2"), (1, -1), (1, math.nan), (2**53 + 1,),
     (1, 2, None), (1, 2, b"x"), (1j,)],
)  # fmt: skip
def test_what_is_no_progress_is_said_in_the_job_and_changes_nothing(given: tuple[Any, ...]) -> None:
    worker, supervisor = both_ends()

    def f(ctx: WorkerContext) -> None:
        ctx.progress(1, 2)
        ctx.progress(*given)

    error = error_of(run_with(worker, f))

    assert (error.type, error.message[:26]) == ("ConfigurationError", "ctx.progress was given don")
    found = supervisor.read()
    assert found is not None
    assert found[1] == Progress(done=1, total=2)


def test_failures_and_retries_keep_it_and_other_outcomes_do_without() -> None:
    worker, _ = both_ends()

    def failing(ctx: WorkerContext) -> WorkerResult:
        ctx.progress(7)
        return WorkerResult.failure("no")

    def interrupted(ctx: WorkerContext) -> None:
        ctx.progress(8)
        raise JobInterrupted("now")

    failed = run_with(worker, failing)
    raised = run_with(worker, interrupted)  # without being asked to: a failure as any other
    given_up = run_with(worker, interrupted, cancelled(CancelReason.CANCELLED))

    assert isinstance(failed, Failure)
    assert isinstance(raised, Retry)
    assert [extras and extras.progress for extras in map(extras_of, (failed, raised, given_up))] == [
        Progress(done=7),
        Progress(done=8),
        None,
    ]
    assert isinstance(given_up, Cancelled)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (Progress(done=3), "3"),
        (Progress(done=1, total=3, note="crops"), "1 of 3 (33 %), crops"),
        (Progress(done=5, total=4), "5 of 4 (100 %)"),
        (Progress(done=0.25, total=0.5), "0.25 of 0.5 (50 %)"),
        (Progress(done=0, total=0), "0 of 0 (100 %)"),
    ],
)
def test_it_reads_as_people_say_it(said: Progress, text: str) -> None:
    assert str(said) == text
