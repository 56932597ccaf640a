"""`ctx.then`: what a running job wants to be enqueued with its success."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from qml_mp import InvalidJob, Job, JobFailed, JobHandle, QmlApp, WorkerContext, WorkerResult


@pytest.fixture
def ran(app: QmlApp) -> list[tuple[int, object]]:
    """The arguments and the parents of the jobs of "next", in the order in which they ran."""
    ran: list[tuple[int, object]] = []

    @app.job("next")
    def following(ctx: WorkerContext, number: int) -> None:
        ran.append((number, ctx.job.to_json().get("parent_id")))

    return ran


def next_job(number: int = 1) -> Job:
    return Job.new("next", {"number": number})


def enqueue(app: QmlApp, function: Callable[[WorkerContext], object], max_retries: int = 0) -> JobHandle[Any]:
    def work(ctx: WorkerContext) -> Any:
        return function(ctx)

    with app.inline():
        return app.job("work")(work).using(max_retries=max_retries).enqueue()


def test_what_follows_a_success_names_its_parent_and_runs_once_however_often_it_is_said(
    app: QmlApp, ran: list[tuple[int, object]]
) -> None:
    def f(ctx: WorkerContext) -> None:
        first = next_job(1)
        ctx.then(first)
        ctx.then(next_job(2), first)

    handle = enqueue(app, f)

    assert ran == [(1, handle.id), (2, handle.id)]


@pytest.mark.parametrize(
    ("said", "following"),
    [(WorkerResult.failure("no"), []), (WorkerResult.retry("later"), [2])],
    ids=["failed", "retried"],
)
def test_nothing_follows_an_attempt_that_did_not_succeed(
    app: QmlApp, ran: list[tuple[int, object]], said: WorkerResult, following: list[int]
) -> None:
    def f(ctx: WorkerContext) -> object:
        ctx.then(next_job(ctx.attempt))
        return said if ctx.attempt == 1 else None

    handle = enqueue(app, f, max_retries=1)

    assert ran == [(attempt, handle.id) for attempt in following]


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        ([None], r"takes jobs, as other\.job"),
        ([next_job] * 1, r"takes jobs, as other\.job"),
        ([next_job(number) for number in range(1001)], "1000 follow-up jobs"),
        ([Job.new("next", {"number": 1, "text": "x" * 1_000_000}) for _ in range(9)], "characters"),
    ],
    ids=["none", "a function", "too many", "too much text"],
)
def test_what_cannot_be_enqueued_fails_in_the_job_and_nothing_follows(
    app: QmlApp, ran: list[tuple[int, object]], jobs: list[Any], message: str
) -> None:
    handle = enqueue(app, lambda ctx: ctx.then(next_job(), *jobs))

    with pytest.raises(JobFailed, match=rf"InvalidJob.*{message}"):
        handle.wait(0)
    assert not ran


def test_once_the_attempt_has_ended_it_is_refused_and_not_lost(app: QmlApp) -> None:
    contexts = list[WorkerContext]()

    enqueue(app, contexts.append)

    with pytest.raises(InvalidJob, match="after the attempt had ended"):
        contexts[0].then(next_job())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_in_a_forked_process_it_is_refused_and_not_lost(app: QmlApp, ran: list[tuple[int, object]]) -> None:
    def f(ctx: WorkerContext) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                ctx.then(next_job())
            except InvalidJob:
                os._exit(7)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert enqueue(app, f).wait(0) == 7
    assert not ran
