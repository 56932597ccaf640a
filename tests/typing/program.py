"""A user's program, right and wrong, as mypy (strict) and pyright (strict) see it; nobody runs it.

`assert_type` says what a type checker must find. A wrong line has the error that each must report, and where
that is not reported, its comment is an error (`warn_unused_ignores`, `reportUnnecessaryTypeIgnoreComment`).
`scripts/check` runs both.
"""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, assert_type

from qml_mp import Job, JobFunction, JobHandle, QmlApp, QmlError, WorkerContext, WorkerResult
from qml_mp.core.payload import JsonValue

app = QmlApp("sqlite:///jobs.db")


@dataclass
class Thumbnail:
    path: Path
    width: int


@app.job(queue="images", timeout="2m")
def thumb(ctx: WorkerContext, path: Path, width: int = 800) -> Thumbnail:
    return Thumbnail(path, width)


@app.job()
def count(text: str, *, words: bool = False) -> int:
    return len(text.split() if words else text)


@app.job()
async def welcome(user_id: int) -> date:
    return date.today()  # noqa: DTZ011


@app.job()
async def greet(ctx: WorkerContext, *names: str) -> list[str]:
    return list(names)


@app.job(result=False)
def login(name: str) -> bytes:
    return name.encode()


@app.job(result=False)
async def alogin(ctx: WorkerContext, name: str) -> bytes:
    return name.encode()


@app.job()
def decide(ctx: WorkerContext) -> WorkerResult:
    return WorkerResult.success(3)


@app.recurring("@daily")
@app.job(queue="reports")
def report(day: date | None = None) -> dict[str, int]:
    return {}


@app.recurring("@hourly")
def digest() -> None: ...


def results() -> None:
    assert_type(thumb.enqueue(Path("a"), width=3), JobHandle[Thumbnail])
    assert_type(thumb.enqueue(Path("a")).wait(timeout="30s"), Thumbnail)
    assert_type(thumb.enqueue(Path("a")).result, Thumbnail | None)
    assert_type(thumb.using(delay=60, priority=5).enqueue(Path("b")).wait(), Thumbnail)
    assert_type(thumb.handle("id").wait(), Thumbnail)
    assert_type(thumb.job(Path("c")), Job)
    assert_type(thumb.enqueue_many(thumb.job(Path(name)) for name in "abc"), list[JobHandle[Thumbnail]])
    assert_type(count.enqueue("a b", words=True).wait(), int)
    assert_type(welcome.enqueue(3).wait(), date)
    assert_type(greet.enqueue("a", "b").wait(), list[str])
    assert_type(login.enqueue("a").wait(), None)
    assert_type(alogin.enqueue("a").wait(), None)
    assert_type(decide.enqueue().wait(), JsonValue)
    assert_type(report.enqueue(date(2025, 3, 1)).wait(), dict[str, int])
    assert_type(digest.enqueue().wait(), None)
    assert_type(app.enqueue("count", {"text": "a"}).wait(), JsonValue)
    assert_type(app.handle("id").result, JsonValue)
    assert_type(app.enqueue_many([count.job("a"), welcome.job(3)]), list[JobHandle[JsonValue]])


def direct_calls() -> None:
    """As before the decorator; the context may be left out, so arguments are not checked."""
    assert_type(count("a"), int)
    assert_type(login("a"), bytes)
    coroutine: Coroutine[Any, Any, date] = welcome(3)
    coroutine.close()


def waiting_for_many() -> None:
    handles = [count.enqueue(text) for text in "ab"]
    assert_type(app.wait_all(handles, timeout=30), list[int])
    assert_type(app.wait_all(handles, return_exceptions=True), list[int | QmlError])
    for handle in app.as_completed(handles):
        assert_type(handle, JobHandle[int])
        assert_type(handle.wait(), int)


async def in_coroutines() -> None:
    assert_type(await thumb.aenqueue(Path("a")), JobHandle[Thumbnail])
    assert_type(await (await welcome.using(queue="mail").aenqueue(3)).await_result(timeout=3), date)
    handles = await count.aenqueue_many([count.job("a")])
    assert_type(await app.await_all(handles), list[int])
    assert_type(await app.await_all(handles, return_exceptions=True), list[int | QmlError])
    async for handle in app.aas_completed(handles):
        assert_type(await handle.await_result(), int)


def annotated() -> None:
    """As a user writes them."""
    kept: JobHandle[int] = count.enqueue("a")
    wider: JobHandle[int | str] = kept
    any_handle: JobHandle = kept
    several: list[JobHandle] = [kept, welcome.enqueue(3), app.enqueue("count")]
    mixed: list[JobHandle[int | date]] = [kept, welcome.enqueue(3)]
    assert_type(app.wait_all(mixed), list[int | date])
    first: JobFunction[[int], date, Coroutine[Any, Any, date]] = welcome
    print(wider, any_handle, several, first)


# fmt: off
async def wrong() -> None:
    """One error in each line that has comments."""
    thumb.enqueue()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    thumb.enqueue("a.png")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    thumb.enqueue(Path("a"), height=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    thumb.using(priority="high")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    thumb.using(prio=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    thumb.using(delay=3).enqueue(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    count.job("a", 3)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    count.enqueue(b"a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await welcome.aenqueue("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    greet.enqueue(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    a: str = count.enqueue("a").wait()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    b: Path = thumb.enqueue(Path("a")).wait()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    c: JobHandle[str] = count.enqueue("a")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    d: list[str] = app.wait_all([count.enqueue("a")])  # type: ignore[list-item]  # pyright: ignore[reportAssignmentType]
    e: int = await welcome.enqueue(3).await_result()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    f: bytes = login.enqueue("a").wait()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    count.enqueue("a").wait(timeout=[])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.wait_all([3])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    app.wait_all(count.enqueue("a"))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    app.job(rate=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    app.job(timeout=timedelta(1), result="no")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    app.job(thumb)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    print(thumb.enqueue(Path("a")).wait().height)  # type: ignore[attr-defined]  # pyright: ignore
    print(a, b, c, d, e, f)
# fmt: on
