"""Tests: what a running job wants to be enqueued with its success."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qml_mp.core.job import Job
from qml_mp.core.outcome import Failure, Retry, Success
from qml_mp.errors import InvalidJob
from qml_mp.processing import board
from qml_mp.processing.context import WorkerContext, WorkerResult
from tests.unit.processor_case import claim_of, error_of, run


def chaining(*jobs: Any, then: Callable[[], object] = lambda: None) -> Callable[..., object]:
    def f(ctx: WorkerContext) -> object:
        ctx.then(*jobs)
        return then()

    return f


def followers(outcome: object) -> list[Job]:
    assert isinstance(outcome, Success)
    assert outcome.extras is not None
    return list(outcome.extras.follow_ups)


def test_a_success_carries_what_follows_and_each_names_its_parent() -> None:
    first, second = Job.new("next", 1, metadata={"of": "me"}), Job.new("next", 2, priority=3)
    claim = claim_of()

    def f(ctx: WorkerContext) -> None:
        ctx.then(first)
        ctx.then(second, first)  # once, however often it is said

    got = followers(run(f, claim))

    assert [job.metadata for job in got] == [
        {"of": "me", "parent_id": claim.job.id},
        {"parent_id": claim.job.id},
    ]
    assert [job.to_json()["parent_id"] for job in got] == [claim.job.id] * 2
    assert "parent_id" not in first.to_json()
    assert [replace(job, metadata={}) for job in got] == [replace(first, metadata={}), second]


@pytest.mark.parametrize("said", [WorkerResult.failure("no"), WorkerResult.retry("later")])
def test_nothing_follows_an_attempt_that_did_not_succeed(said: WorkerResult) -> None:
    outcome = run(chaining(Job.new("next"), then=lambda: said))

    assert isinstance(outcome, Failure | Retry)
    assert outcome.extras is None


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (None, r"takes jobs, as other\.job"),
        (chaining, r"takes jobs, as other\.job"),
        (replace(Job.new("next"), method=""), "method name"),
        (replace(Job.new("next"), payload={1: 2}), "payload"),  # type: ignore[dict-item]
        (claim_of().job, "only an Enqueued or Scheduled job can be new"),
    ],
)
def test_what_cannot_be_enqueued_fails_in_the_job(job: Any, message: str) -> None:
    error = error_of(run(chaining(Job.new("next"), job)))

    assert error.type == "InvalidJob"
    assert message.replace("\\", "") in error.message


def test_one_job_twice_is_refused_and_not_enqueued_once() -> None:
    twin = Job.new("next")

    error = error_of(run(chaining(twin, Job.new("next"), twin)))

    assert error.type == "InvalidJob"
    assert f"{twin.id} twice" in error.message


def test_once_the_attempt_has_ended_it_is_refused_and_not_lost() -> None:
    contexts = list[WorkerContext]()

    def f(ctx: WorkerContext) -> None:
        contexts.append(ctx)

    run(f)

    with pytest.raises(InvalidJob, match="after the attempt had ended"):
        contexts[0].then(Job.new("next"))
    assert not contexts[0].board.follow_ups


def test_in_a_forked_process_it_is_refused_and_not_lost() -> None:
    def f(ctx: WorkerContext) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                ctx.then(Job.new("next"))
            except InvalidJob:
                os._exit(7)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    outcome = run(f)

    assert isinstance(outcome, Success)
    assert (outcome.result, outcome.extras) == (7, None)


def test_there_is_a_most_and_what_is_refused_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "MOST_FOLLOW_UPS", 2)
    monkeypatch.setattr(board, "MOST_TEXT_CHARS", 500)

    def f(ctx: WorkerContext) -> None:
        ctx.then(Job.new("next", 1))
        with pytest.raises(InvalidJob, match="2 follow-up jobs"):
            ctx.then(Job.new("next", 2), Job.new("next", 3))
        with pytest.raises(InvalidJob, match="500 characters"):
            ctx.then(Job.new("next", "x" * 500))
        ctx.then(Job.new("next", 4))

    assert [job.payload for job in followers(run(f))] == [1, 4]
