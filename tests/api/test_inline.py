"""Tests: within `app.inline()`, jobs run where they are enqueued, by the parts that run them in a worker."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from qml_mp import (
    ConfigurationError,
    ErrorInfo,
    InvalidJob,
    Job,
    JobFailed,
    Progress,
    QmlApp,
    ResultNotStored,
    RetryPolicy,
    StateChange,
    StateName,
    WorkerContext,
    WorkerResult,
    inline,
    inline_calls,
)
from qml_mp.core.outcome import AttemptKind

app = QmlApp("sqlite:////nowhere/jobs.db", retry_policy=RetryPolicy.exponential(max_attempts=3))
seen: list[Any] = []


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


@dataclass
class Size:
    width: int
    at: datetime


@app.job()
def resize(size: Size, paths: tuple[str, ...] = ()) -> dict[str, Any]:
    seen.append((size, paths))
    return {"size": size, "paths": paths}


@app.job()
def fail_until(ctx: WorkerContext, attempt: int) -> int:
    seen.append((ctx.attempt, ctx.previous_exception and ctx.previous_exception.message))
    if ctx.attempt < attempt:
        raise ValueError(f"attempt {ctx.attempt}")
    return ctx.attempt


@app.job()
def lead(ctx: WorkerContext, then: int) -> str:
    ctx.progress(1, 2)
    for n in range(then):
        ctx.then(note.using(delay=60, priority=n).job(f"followed {n}"))
    return str(note.using(delay="1h").enqueue("nested").wait())


@app.job()
def note(text: str) -> str:
    seen.append(text)
    return text


@app.job()
async def wait(text: str) -> str:
    await asyncio.sleep(0)
    handle = await note.aenqueue(text)
    return str(handle.wait(timeout=0)) + "!"


async def ask(text: str) -> str:
    await asyncio.sleep(0)
    return f"{text}? "


@app.job()
def again() -> None:
    again.using(delay=60).enqueue()


@app.job()
def again_afterwards(ctx: WorkerContext) -> None:
    ctx.then(again_afterwards.using(delay=60).job())


@app.job()
def again_afterwards_beside_others(ctx: WorkerContext) -> None:
    note.enqueue_many(note.job(text) for text in "ab")
    ctx.then(again_afterwards_beside_others.job())


@app.job()
def end(kind: str) -> object:
    match kind:
        case "Ctrl-C":
            raise KeyboardInterrupt
        case "pytest":
            pytest.fail("the job says so")
        case "exit":
            raise SystemExit(3)
        case "said":
            return WorkerResult.failure("no such picture")
    return {1, 2} if kind == "set" else object()


def test_a_job_has_ended_when_enqueue_returns_and_its_json_was_that_of_production() -> None:
    at = datetime(2026, 1, 2, tzinfo=UTC)

    with app.inline():
        handle = resize.enqueue(Size(3, at), paths=("a", "b"))
        assert handle.state is StateName.SUCCEEDED
        ended = handle.job()

    assert seen == [(Size(3, at), ("a", "b"))]  # rebuilt from the payload
    assert handle.wait(timeout=0) == {
        "size": {"width": 3, "at": at.isoformat()},
        "paths": ["a", "b"],
    }  # after the block too
    assert handle.job() == ended
    assert (ended.claim_seq, ended.failures) == (1, 0)


def test_nothing_touches_the_storage_of_the_app_which_it_has_again_afterwards(tmp_path: Path) -> None:
    own = QmlApp(f"sqlite:///{tmp_path}/jobs.db")
    own.job("note")(lambda text: text)

    with own.inline():
        own.enqueue("note", {"text": "a"})
        inner = own.enqueued()
        with own.inline():
            assert own.enqueued() == []
        assert own.enqueued() == inner
    assert list(tmp_path.iterdir()) == []

    assert own.enqueue("note", {"text": "b"}).state is StateName.ENQUEUED
    assert [job.payload for job in own.enqueued()] == [{"text": "b"}]
    own.close()


def test_what_is_refused_in_production_is_refused_here() -> None:
    with app.inline():
        with pytest.raises(InvalidJob, match="missing a required argument"):
            resize.enqueue()  # type: ignore[call-arg]
        with pytest.raises(InvalidJob, match="set"):
            app.enqueue("note", {"text": {1}})  # type: ignore[dict-item]
        handle = end.enqueue("object")
        with pytest.raises(ResultNotStored):
            handle.wait()
        assert app.enqueued("note") == []


def test_retries_are_counted_and_not_waited_for() -> None:
    with app.inline():
        handle = fail_until.enqueue(3)

        assert handle.wait(timeout=0) == 3
        attempts = app.storage.attempts(handle.id)

    assert seen == [(1, None), (2, "attempt 1"), (3, "attempt 2")]
    assert [(attempt.kind, attempt.claim_seq) for attempt in attempts] == [
        (AttemptKind.FAILURE, 1),
        (AttemptKind.FAILURE, 2),
    ]


def test_a_job_that_fails_is_stored_as_failed() -> None:
    with app.inline():
        handle = fail_until.enqueue(9)
        said = end.enqueue("said")

        assert (handle.state, handle.job().failures, len(seen)) == (StateName.FAILED, 3, 3)
        with pytest.raises(JobFailed, match="ValueError: attempt 3"):
            handle.wait()
        with pytest.raises(JobFailed, match="no such picture"):
            said.wait()


def test_enqueue_raises_what_the_last_attempt_raised_where_that_is_wanted() -> None:
    with app.inline(raise_failures=True):
        assert fail_until.enqueue(3).wait() == 3
        with pytest.raises(ValueError, match="attempt 3") as caught:
            fail_until.enqueue(9)
        with pytest.raises(JobFailed, match="no such picture"):
            end.enqueue("said")
        assert [job.state_name for job in app.enqueued()] == [
            StateName.SUCCEEDED,
            StateName.FAILED,
            StateName.FAILED,
        ]

    assert caught.traceback[-1].name == "fail_until"  # as it was raised


def test_a_job_is_told_of_failures_of_what_it_enqueues_and_not_of_its_siblings() -> None:
    own = QmlApp("sqlite:////nowhere/jobs.db", retry_policy=RetryPolicy.none())

    @own.job()
    def enqueue_two() -> str:
        own.enqueue_many([ask.job(), fail.job("of the parent")])
        return "told of nothing"

    @own.job()
    def ask() -> str:
        return good.enqueue().wait(timeout=0)

    @own.job()
    def good() -> str:
        return "good"

    @own.job()
    def fail(text: str) -> None:
        raise ValueError(text)

    with own.inline(raise_failures=True):
        with pytest.raises(ValueError, match="of a sibling"):
            own.enqueue_many([ask.job(), fail.job("of a sibling")])
        beside_siblings = [(job.method, job.state_name) for job in own.enqueued()]
        with pytest.raises(ValueError, match="of the parent"):
            enqueue_two.enqueue()
        [parent] = own.enqueued(enqueue_two)
        assert good.enqueue().wait(timeout=0) == "good"  # nothing is told twice

    ended = {"ask": StateName.SUCCEEDED, "fail": StateName.FAILED, "good": StateName.SUCCEEDED}
    assert sorted(beside_siblings) == sorted(ended.items())
    assert parent.state_name is StateName.FAILED


def test_delays_nested_jobs_and_follow_ups_run_at_once() -> None:
    with app.inline():
        handle = lead.using(at=datetime.now(UTC) + timedelta(days=9)).enqueue(3)

        assert handle.wait(timeout=0) == "nested"
        assert handle.progress == Progress(done=1, total=2)
        parents = {str(job.payload): job.metadata.get("parent_id") for job in app.enqueued(note)}

    assert seen == ["nested", "followed 2", "followed 1", "followed 0"]
    assert parents == {
        "{'text': 'nested'}": None,
        **{f"{{'text': 'followed {n}'}}": handle.id for n in range(3)},
    }


def test_what_belongs_to_a_transaction_runs_at_once_too(tmp_path: Path) -> None:
    with app.inline(), closing(sqlite3.connect(tmp_path / "mine.db")) as connection:
        connection.execute("BEGIN")
        assert note.using(conn=connection).enqueue("a").wait(timeout=0) == "a"
        connection.rollback()

    assert seen == ["a"]


def test_several_are_enqueued_together_or_none() -> None:
    with app.inline():
        handles = app.enqueue_many([note.job("a"), note.using(unique_key="k").job("b")])
        assert [handle.wait(timeout=0) for handle in handles] == ["a", "b"]
        with pytest.raises(InvalidJob):
            app.enqueue_many([note.job("c"), Job.new("note", {"text": object()})])  # type: ignore[dict-item]

    assert seen == ["a", "b"]


def test_coroutines_run_with_and_without_a_loop_around_them() -> None:
    async def in_a_loop() -> list[object]:
        handles = [wait.enqueue("sync"), await wait.aenqueue("async")]
        handles += await asyncio.gather(*(wait.aenqueue(str(n)) for n in range(4)))
        return [handle.wait(timeout=0) for handle in handles]

    with app.inline():
        assert wait.enqueue("none").wait(timeout=0) == "none!"
        assert asyncio.run(in_a_loop()) == ["sync!", "async!", "0!", "1!", "2!", "3!"]


class NotingCondition(threading.Condition):
    """Notes who waits for it. Of a thread that runs, the frames cannot be walked: they go as one looks."""

    waiting: ClassVar[set[int | None]] = set()

    def wait(self, timeout: float | None = None) -> bool:
        self.waiting.add(threading.get_ident())
        try:
            return super().wait(timeout)
        finally:
            self.waiting.discard(threading.get_ident())


@pytest.fixture(autouse=True)
def note_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline_calls, "threading", SimpleNamespace(Condition=NotingCondition))


def test_a_job_that_enqueues_itself_for_ever_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "_MOST_BESIDES", 20)
    monkeypatch.setattr(inline, "_MOST_OF_EACH", 5)
    monkeypatch.setattr(inline, "_DEEPEST", 5)
    with app.inline():
        app.enqueue_many(note.job(str(n)) for n in range(30))  # as many as one likes
        handle = again.enqueue()
        for endless in (again_afterwards, again_afterwards_beside_others):
            with pytest.raises(ConfigurationError, match="more than 20 follow-up jobs and retries"):
                endless.enqueue()

        assert {job.state_name for job in app.enqueued(again)} == {StateName.SUCCEEDED, StateName.FAILED}
        assert handle.state is StateName.SUCCEEDED
        assert note.enqueue("goes on").wait(timeout=0) == "goes on"


@pytest.mark.parametrize(
    ("kind", "raised"), [("Ctrl-C", KeyboardInterrupt), ("pytest", pytest.fail.Exception)]
)
def test_what_ends_a_test_ends_it(kind: str, raised: type[BaseException]) -> None:
    with app.inline(), pytest.raises(raised):
        end.enqueue(kind)


def test_an_exit_fails_the_job_as_in_production() -> None:
    with app.inline():
        handle = end.enqueue("exit")
        error = handle.job().error

    assert error is not None
    assert error.type == "SystemExit"


def test_jobs_of_methods_that_the_app_does_not_know_wait() -> None:
    producer = QmlApp("sqlite:////nowhere/jobs.db")

    with producer.inline():
        assert producer.enqueue("elsewhere", {"n": 1}).state is StateName.ENQUEUED
        assert [job.method for job in producer.enqueued("elsewhere")] == ["elsewhere"]


def test_middleware_hook_log_and_context_are_those_of_a_worker(caplog: pytest.LogCaptureFixture) -> None:
    changes: list[tuple[str, str, str]] = []
    hook_of = QmlApp("sqlite:////nowhere/jobs.db", on_state_change=lambda change: told(change))
    variable: ContextVar[str] = ContextVar("variable", default="unset")

    def told(change: StateChange) -> None:
        variable.set("the hook's")
        changes.append((change.job.method, str(change.old), str(change.new)))
        if change.new is StateName.SUCCEEDED:
            raise RuntimeError("the hook is broken")

    @hook_of.job()
    def inner() -> None:
        variable.set("inner")

    @hook_of.job()
    def outer() -> str:
        inner.enqueue()
        return variable.get()

    with hook_of.inline(), caplog.at_level(logging.INFO, "qml_mp"):
        assert outer.enqueue().wait(timeout=0) == "unset"

    assert variable.get() == "unset"
    assert changes == [
        ("outer", "enqueued", "processing"),
        ("inner", "enqueued", "processing"),
        ("inner", "processing", "succeeded"),
        ("outer", "processing", "succeeded"),
    ]
    assert [record.message for record in caplog.records if "hook failed" in record.message]
    assert [record.method for record in caplog.records if record.message.endswith("started")] == [  # type: ignore[attr-defined]
        "outer",
        "inner",
    ]


def test_a_job_gets_its_arguments_whatever_the_hook_makes_of_the_payload_that_it_is_told() -> None:
    def hide(change: StateChange) -> None:
        payload: Any = change.job.payload
        del payload["password"]

    hidden = QmlApp("sqlite:////nowhere/jobs.db", on_state_change=hide)

    @hidden.job()
    def sign_in(password: str) -> str:
        return password

    with hidden.inline():
        assert sign_in.enqueue("secret").wait(timeout=0) == "secret"


def test_a_failure_for_good_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    told_of = QmlApp("sqlite:////nowhere/jobs.db", retry_policy=RetryPolicy.exponential(max_attempts=2))

    @told_of.on_failure
    def tell(job: Job, error: ErrorInfo) -> None:
        seen.append((job.state_name, job.failures, error.message))
        raise RuntimeError("the hook is broken")

    @told_of.job()
    def fail(times: int) -> None:
        seen.append("run")
        if seen.count("run") <= times:
            raise ValueError("no luck")

    with told_of.inline():
        fail.enqueue(1)
        assert seen == ["run", "run"]
        fail.enqueue(9)

    assert seen[2:] == ["run", "run", (StateName.FAILED, 2, "no luck")]
    assert "on_failure of job" in caplog.text
