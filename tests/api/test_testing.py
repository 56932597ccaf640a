"""Tests: contexts for job functions that a test calls directly."""

from __future__ import annotations

from typing import Any

import pytest

from qml_mp import (
    CancelReason,
    ConfigurationError,
    InvalidJob,
    Job,
    JobInterrupted,
    JobTimeout,
    Progress,
    WorkerContext,
    testing,
)


def work(ctx: WorkerContext, items: int) -> str:
    for done in range(items):
        ctx.progress(done, items, "works")
        ctx.cancel.raise_if_cancelled()
    ctx.then(Job.new("next", {"items": items}))
    return f"attempt {ctx.attempt}"


def test_a_first_attempt_that_nobody_cancels() -> None:
    ctx = testing.context()

    assert work(ctx, 2) == "attempt 1"

    assert ctx.previous_exception is None
    assert (ctx.job.claim_seq, ctx.job.failures, ctx.cancel.is_cancelled) == (1, 0, False)
    assert testing.progress_of(ctx) == [Progress(done=n, total=2, note="works") for n in range(2)]
    [follow_up] = testing.follow_ups_of(ctx)
    assert (follow_up.method, follow_up.payload) == ("next", {"items": 2})


def test_a_later_attempt_knows_what_ended_the_one_before() -> None:
    ctx = testing.context(attempt=3, previous_exception=ValueError("no luck"), method="m", payload={"a": 1})

    assert (ctx.attempt, ctx.job.attempt, ctx.job.method, ctx.job.payload) == (3, 3, "m", {"a": 1})
    assert ctx.previous_exception is not None
    assert (ctx.previous_exception.type, ctx.previous_exception.message) == ("ValueError", "no luck")


@pytest.mark.parametrize(
    ("cancelled", "reason", "raised"),
    [
        (True, CancelReason.CANCELLED, JobInterrupted),
        ("shutdown", CancelReason.SHUTDOWN, JobInterrupted),
        (CancelReason.TIMEOUT, CancelReason.TIMEOUT, JobTimeout),
    ],
)
def test_a_cancelled_one_says_why(cancelled: Any, reason: CancelReason, raised: type[BaseException]) -> None:
    ctx = testing.context(cancelled=cancelled)

    assert ctx.cancel.wait(60)
    assert ctx.cancel.reason is reason
    with pytest.raises(raised, match="by the test"):
        work(ctx, 1)
    assert testing.follow_ups_of(ctx) == []


def test_what_a_worker_refuses_is_refused() -> None:
    ctx = testing.context()

    with pytest.raises(ConfigurationError, match="done=-1"):
        ctx.progress(-1)
    with pytest.raises(ConfigurationError, match="note=7"):
        ctx.progress(1, None, 7)  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match="takes jobs"):
        ctx.then("next")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"attempt": 0}, {"attempt": "2"}, {"cancelled": "soon"}])
def test_a_context_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        testing.context(**wrong)


def test_progress_of_another_context_is_not_known() -> None:
    made = testing.context()
    other = WorkerContext.of(made.job, started_at=made.started_at, cancel=made.cancel)
    other.progress(1, 2)  # seen nowhere

    with pytest.raises(ConfigurationError, match=r"testing\.context"):
        testing.progress_of(other)
