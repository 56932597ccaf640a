"""Tests: how far a job says that it has come, from the job to whoever reads it."""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from types import FrameType
from typing import Any

import pytest

from qml_mp.core.job import ClaimKey, Job
from qml_mp.core.outcome import Cancelled, Failure, Outcome, Retry, extras_of
from qml_mp.core.progress import Progress, progress_of
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.ipc.progress import ProgressCell
from qml_mp.ipc.slot import Activity, SlotTable, SlotView, SlotWriter
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


def test_a_note_is_cut_between_characters_and_a_shorter_one_leaves_nothing_of_it() -> None:
    worker, supervisor = both_ends()
    job = Job.new("f")

    worker.show(job, 1, None, "x" + "ä" * 200)
    long = supervisor.read()
    worker.show(job, 2, None, "ö")

    assert long is not None
    assert long[1].note == "x" + "ä" * 149
    assert supervisor.read() == (key_of(job), Progress(done=2, note="ö"))


def test_the_neighbours_and_the_slot_itself_are_not_touched() -> None:
    slots = SlotTable(3)
    writer = slots.writer(1)
    writer.say("t" * 10_000)  # all that there is room for
    writer.show(SlotView(activity=Activity.RUNNING, method="m"))
    before = slots.read(1), slots.mark(1)

    writer.progress.show(Job.new("f"), 1, 2, "n" * 1000)

    assert (slots.read(1), slots.mark(1)) == before
    assert [slots.progress(index).read() is None for index in range(3)] == [True, False, True]
    writer.say("u" * 10_000)
    assert slots.progress(1).read() is not None
    slots.clear(1)
    assert slots.progress(1).read() is None


def test_the_next_claim_has_said_nothing_yet() -> None:
    worker, _ = both_ends()
    job = replace(Job.new("f"), claim_seq=1)

    worker.show(job, 5, 5, "")

    assert worker.newest_of(replace(job, claim_seq=2)) is None
    assert worker.newest_of(Job.new("f")) is None


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


def test_what_was_said_last_is_read_wherever_the_job_is_interrupted_as_it_says_more() -> None:
    worker, supervisor = both_ends()
    job, left = Job.new("f"), 0

    def interrupt(frame: FrameType, event: str, _: object) -> None:
        """As a signal handler does: where a call returns."""
        nonlocal left
        left -= event == "c_return" and frame.f_code is ProgressCell.show.__code__
        if left == 0:
            raise JobTimeout("now")

    returns, read = 0, list[tuple[ClaimKey, Progress] | None]()
    while left == 0:  # else all calls have returned
        worker.show(job, 1, 2, "one")
        returns = left = returns + 1
        with suppress(JobTimeout):
            sys.setprofile(interrupt)
            worker.show(job, 2, 2, "another")
        sys.setprofile(None)
        read.append(supervisor.read())

    one, another = Progress(done=1, total=2, note="one"), Progress(done=2, total=2, note="another")
    assert set(read) == {(key_of(job), one), (key_of(job), another)}


def test_two_processes_that_write_at_a_time_leave_what_can_be_read() -> None:
    worker, supervisor = both_ends()
    job = Job.new("f")
    pid = os.fork()
    for _ in range(20_000):
        worker.show(job, 1, 2, "one")
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

    worker.show(job, 3, 4, "both")

    assert supervisor.read() == (key_of(job), Progress(done=3, total=4, note="both"))


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


def test_a_job_that_says_nothing_after_one_that_did_has_none() -> None:
    worker, _ = both_ends()
    run_with(worker, lambda ctx: ctx.progress(1))

    def said(ctx: WorkerContext) -> None:
        ctx.progress(1)

    run_with(worker, said)
    assert extras_of(run_with(worker, lambda: 1)) is None


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


@pytest.mark.parametrize("value", [None, 3, {}, {"done": "1"}, {"done": -1}, {"done": 1, "total": "x"}])
def test_what_another_program_has_written_is_no_progress(value: object) -> None:
    assert progress_of(value) is None


def test_a_writer_says_it_of_its_own_slot() -> None:
    slots = SlotTable(2)
    writers: list[SlotWriter] = [slots.writer(0), slots.writer(1)]
    job = Job.new("f")

    writers[1].progress.show(job, 1, None, "")

    assert [slots.progress(index).read() for index in (0, 1)] == [None, (key_of(job), Progress(done=1))]
