"""Tests: what comes of a job that is cancelled, interrupted or out of time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from qml_mp.core.outcome import AttemptKind, Cancelled, Failure, Outcome, Release, Retry
from qml_mp.errors import JobInterrupted, JobTimeout
from qml_mp.processing.cancel import CancelReason
from qml_mp.processing.context import WorkerContext
from qml_mp.processing.retry import RetryPolicy
from tests.unit.processor_case import (
    cancelled,
    claim_of,
    keys_of,
    processor_of,
    raising,
    returning,
    run,
)


class SaboteurGuard:
    """Raises what it is given at the n-th time that user code ends, as a signal handler could."""

    def __init__(self, *, entry: int, error: BaseException) -> None:
        self.entries = 0
        self.entry = entry
        self.error = error
        self.inside = False

    @contextmanager
    def user_code(self) -> Iterator[None]:
        assert not self.inside
        self.entries += 1
        self.inside = True
        try:
            yield
            if self.entries == self.entry:
                raise self.error
        finally:
            self.inside = False


@pytest.mark.fault(32)
def test_an_exception_whose_description_is_interrupted_is_still_recorded() -> None:
    guard = SaboteurGuard(entry=3, error=JobTimeout("late"))

    outcome = run(raising(ValueError("slow to print")), user_code=guard.user_code)

    assert isinstance(outcome, Retry)
    assert (outcome.kind, outcome.error.type) == (AttemptKind.FAILURE, "ValueError")
    assert "JobTimeout" in outcome.error.message
    assert outcome.error.traceback is not None


def test_an_interruption_at_the_very_end_of_user_code_is_caught() -> None:
    guard = SaboteurGuard(entry=1, error=JobInterrupted("now"))

    assert run(
        returning(1), cancel=cancelled(CancelReason.CANCELLED), user_code=guard.user_code
    ) == Cancelled(reason="enough")


def interrupted(ctx: WorkerContext) -> None:
    ctx.cancel.raise_if_cancelled()


def interrupted_in_a_group(ctx: WorkerContext) -> None:
    """As `asyncio.TaskGroup` raises it."""
    try:
        ctx.cancel.raise_if_cancelled()
    except JobInterrupted as interruption:
        others = ExceptionGroup("others", [ValueError("too"), OSError()])
        raise BaseExceptionGroup("tasks", [others, BaseExceptionGroup("deeper", [interruption])]) from None


def test_an_interruption_in_a_group_is_judged_as_one() -> None:
    def ended_for(reason: CancelReason) -> Outcome:
        return run(interrupted_in_a_group, cancel=cancelled(reason))

    timeout = ended_for(CancelReason.TIMEOUT)
    assert ended_for(CancelReason.SHUTDOWN) == Release(reason="enough")
    assert ended_for(CancelReason.CANCELLED) == Cancelled(reason="enough")
    assert isinstance(timeout, Retry)
    assert (timeout.kind, timeout.error.type) == (AttemptKind.TIMEOUT, "JobTimeout")


def test_a_group_without_one_is_an_ordinary_failure_however_deep_it_is() -> None:
    group: BaseException = KeyboardInterrupt()
    for _ in range(20_000):
        group = BaseExceptionGroup("one more", [group])

    outcome = run(raising(group), cancel=cancelled(CancelReason.SHUTDOWN))

    assert isinstance(outcome, Retry)
    assert (outcome.kind, outcome.error.type) == (AttemptKind.FAILURE, "BaseExceptionGroup")


def test_a_timeout_is_a_timeout_even_when_the_token_was_cancelled_for_another_reason_before() -> None:
    def f(ctx: WorkerContext) -> None:
        if ctx.cancel.is_cancelled:
            raise JobTimeout("as the signal handler does")

    outcome = run(f, cancel=cancelled(CancelReason.SHUTDOWN))

    assert isinstance(outcome, Retry)
    assert outcome.kind is AttemptKind.TIMEOUT


def test_a_timeout_can_be_excluded_from_retries() -> None:
    policy = RetryPolicy.fixed(never_retry=("JobTimeout",))

    assert isinstance(run(interrupted, cancel=cancelled(CancelReason.TIMEOUT), policy=policy), Failure)
    assert processor_of(interrupted, policy=policy).resolve(claim_of()).terms.when_killed.timeout is None


def test_an_interruption_that_nobody_asked_for_is_a_failed_attempt() -> None:
    outcome = run(raising(JobInterrupted("my own idea")))

    assert isinstance(outcome, Retry)
    assert (outcome.kind, outcome.error.type) == (AttemptKind.FAILURE, "JobInterrupted")


class Unreadable(Exception):
    """Its class hides what every exception has."""

    @property
    def __context__(self) -> None:  # type: ignore[override]
        raise RuntimeError("no")

    __cause__ = __context__


def failing_clean_up(ctx: WorkerContext) -> None:
    try:
        ctx.cancel.raise_if_cancelled()
    finally:
        raise OSError("the connection is closed")


def wrapping(ctx: WorkerContext) -> None:
    try:
        ctx.cancel.raise_if_cancelled()
    except BaseException as error:
        raise RuntimeError("the task failed") from error


def wrapping_again_and_hiding_it(ctx: WorkerContext) -> None:
    try:
        wrapping(ctx)
    except RuntimeError:
        raise Unreadable("the batch failed") from None


def in_a_group_of_failing_clean_ups(ctx: WorkerContext) -> None:
    try:
        failing_clean_up(ctx)
    except OSError as error:
        found = error
    raise ExceptionGroup("tasks", [ValueError("another"), found])


def leaving(ctx: WorkerContext) -> None:
    """As a handler of SIGTERM that is the job's own."""
    sys.exit(1)


@pytest.mark.parametrize(
    ("job", "raised"),
    [
        (failing_clean_up, "OSError: the connection is closed"),
        (wrapping, "RuntimeError: the task failed"),
        (wrapping_again_and_hiding_it, "the batch failed"),
        (in_a_group_of_failing_clean_ups, "ExceptionGroup: tasks (2 sub-exceptions)"),
        (leaving, "SystemExit: 1"),
    ],
)
def test_an_error_that_an_ended_job_raises_in_the_interruptions_stead_changes_nothing(
    job: Callable[[WorkerContext], None], raised: str, caplog: pytest.LogCaptureFixture
) -> None:
    claim = claim_of(failures=1)

    def ended_for(reason: CancelReason) -> Outcome:
        return run(job, claim, cancel=cancelled(reason))

    timeout = ended_for(CancelReason.TIMEOUT)
    assert isinstance(timeout, Retry)
    assert (timeout.kind, timeout.error.type) == (AttemptKind.TIMEOUT, "JobTimeout")
    assert timeout.error.message.startswith("The attempt exceeded its time limit of 5m. While it ended")
    assert timeout.error.message.endswith(raised)
    assert ended_for(CancelReason.CANCELLED) == Cancelled(reason="enough")
    assert ended_for(CancelReason.SHUTDOWN) == Release(reason="enough")
    assert [line.endswith(raised) for line in caplog.messages] == [True] * 3
    assert set(map(keys_of, caplog.records)) == {(claim.job.id, "f", 2, "w-1")}


@pytest.mark.parametrize(
    "job", [interrupted, failing_clean_up, wrapping, wrapping_again_and_hiding_it, interrupted_in_a_group]
)
def test_an_error_that_is_raised_again_in_a_job_that_nobody_ends_is_a_failure(
    job: Callable[[WorkerContext], None],
) -> None:
    kept: list[BaseException] = []

    def f(ctx: WorkerContext) -> None:
        if kept:
            raise kept[0]
        try:
            job(ctx)
        except BaseException as error:
            kept.append(error)
            raise

    first, second = run(f, cancel=cancelled(CancelReason.TIMEOUT)), run(f)

    assert isinstance(first, Retry)
    assert isinstance(second, Retry)
    assert (first.kind, second.kind) == (AttemptKind.TIMEOUT, AttemptKind.FAILURE)


@pytest.mark.parametrize("reason", [CancelReason.TIMEOUT, CancelReason.SHUTDOWN, CancelReason.CANCELLED])
def test_an_error_after_an_interruption_that_the_job_has_swallowed_is_a_failure_of_its_own(
    reason: CancelReason,
) -> None:
    def f(ctx: WorkerContext) -> None:
        with suppress(JobInterrupted):
            ctx.cancel.raise_if_cancelled()
        raise ValueError("of its own")

    outcome = run(f, cancel=cancelled(reason))

    assert isinstance(outcome, Retry)
    assert (outcome.kind, outcome.error.type) == (AttemptKind.FAILURE, "ValueError")
