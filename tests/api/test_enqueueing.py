"""From a call to a stored job, on a real SQLite storage."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypedDict

import pytest
from opentelemetry.sdk.trace import TracerProvider

from qml_mp import (
    ConfigurationError,
    InvalidJob,
    Job,
    JobNotFound,
    QmlApp,
    StateName,
    UnknownMethod,
    WaitTimeout,
)
from qml_mp.core.job import new_job_id
from qml_mp.core.payload import JsonValue, encode_json
from qml_mp.otel import OpenTelemetry
from qml_mp.storage.values import JobFilter
from tests.api.app_case import Echo, count, on_day, resize
from tests.until import PATIENCE_S


def test_an_enqueued_call_is_a_stored_job(app: QmlApp) -> None:
    handle = app.job(queue="images", priority=3, max_retries=2)(resize).enqueue("a.png", width=640)

    job = app.storage.get(handle.id)
    assert job is not None
    assert (job.method, job.payload) == ("resize", {"path": "a.png", "width": 640})
    assert (job.queue, job.priority, job.max_retries, job.timeout) == ("images", 3, 2, None)
    assert handle.state is StateName.ENQUEUED


_ENCODERS = {encode_json.__code__: "value", json.JSONEncoder.encode.__code__: "o"}
"""What makes JSON of a value, and the name of that there."""


def times_encoded(payload: object, enqueue: Callable[[], object]) -> int:
    """How often the payload was encoded while `enqueue` ran."""
    seen = 0

    def look(frame: FrameType, event: str, _: object) -> None:
        nonlocal seen
        value = _ENCODERS.get(frame.f_code) if event == "call" else None
        seen += value is not None and frame.f_locals[value] == payload

    sys.setprofile(look)
    try:
        enqueue()
    finally:
        sys.setprofile(None)
    return seen


def test_a_payload_is_encoded_once_however_it_is_enqueued(app: QmlApp) -> None:
    function = app.job()(resize)
    payload: dict[str, JsonValue] = {"path": "a.png", "width": 640}

    assert times_encoded(payload, lambda: function.enqueue("a.png", width=640)) == 1
    assert times_encoded(payload, lambda: function.using(priority=1).enqueue("a.png", width=640)) == 1
    assert times_encoded(payload, lambda: app.enqueue("resize", payload)) == 1
    assert times_encoded(payload, lambda: app.enqueue_many([Job.new("resize", payload)])) == 1
    assert [job.payload for job in app.storage.list_jobs(JobFilter()).jobs] == [payload] * 4


def test_what_is_stored_is_the_payload_that_the_job_was_made_with(app: QmlApp) -> None:
    payload: dict[str, JsonValue] = {"n": 1}
    job = Job.new("f", payload)
    other = replace(job, id=new_job_id(), payload={"n": 3})

    payload["n"] = 2
    app.enqueue_many([job, other])

    assert [row.payload for row in map(app.storage.get, (job.id, other.id)) if row] == [{"n": 1}, {"n": 3}]


def test_options_of_one_job_win_over_those_of_the_function(app: QmlApp) -> None:
    configured = app.job(queue="images")(resize).using(
        queue="urgent", priority=5, max_retries=1, timeout="2m", unique_key="a", metadata={"by": "test"}
    )

    job = configured.enqueue("a.png").job()

    assert (job.queue, job.priority, job.max_retries) == ("urgent", 5, 1)
    assert (job.timeout, job.unique_key, job.metadata) == (timedelta(minutes=2), "a", {"by": "test"})
    assert configured.enqueue("b.png").id == job.id  # the key is taken


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"priority": 5}, "priority 5"),
        ({"priority": 5, "delay": "1h"}, "priority 5 and delay 3600s"),
        ({"at": datetime(2200, 1, 1, tzinfo=UTC)}, "at datetime"),
        ({"queue": "urgent"}, "queue 'urgent'"),
        ({"max_retries": 0}, "max_retries 0"),
        ({"timeout": 5}, "timeout 5s"),
        ({"unique_key": "a", "on_conflict": "replace"}, "unique_key 'a' and on_conflict 'replace'"),
        ({"metadata": {"by": "test"}}, "metadata"),
    ],
)
def test_options_that_the_jobs_of_a_list_do_not_have_are_not_dropped_silently(
    app: QmlApp, options: dict[str, Any], told: str
) -> None:
    function = app.job()(resize)
    configured = function.using(**options)

    with pytest.raises(InvalidJob, match=f"{told}.* g.enqueue_many"):
        configured.enqueue_many(function.job(path) for path in "ab")
    with pytest.raises(InvalidJob, match=f"{told}.* g.enqueue_many"):
        asyncio.run(configured.aenqueue_many(function.job(path) for path in "ab"))

    assert count(app) == 0


def test_jobs_of_a_list_keep_their_own_options(app: QmlApp) -> None:
    function = app.job(queue="images", priority=3)(resize)
    configured = function.using(
        delay="1h", priority=5, metadata={"by": "test"}, unique_for="2h", unique_key="k"
    )

    [first, second] = function.enqueue_many([function.job("a"), function.using(priority=9).job("b")])
    [third] = configured.enqueue_many([configured.job("c")])
    [fourth] = function.using(priority=5).enqueue_many([function.using(priority=5, queue="q").job("d")])
    [fifth] = function.using(queue="images", delay=0).enqueue_many([function.job("e")])  # as it is anyway

    assert [each.job().priority for each in (first, second, third, fourth, fifth)] == [3, 9, 5, 5, 3]
    assert third.state is StateName.SCHEDULED


def test_metadata_of_a_list_is_compared_as_it_is_stored(app: QmlApp) -> None:
    tags: Any = ("a", "b")
    places: Any = [1, (2, 3)]
    configured = app.job()(resize).using(metadata={"tags": tags, "places": places, "by": "test"})
    job = configured.job("a")
    places.append(4)  # the caller's own

    [handle] = configured.enqueue_many([job])

    assert handle.job().metadata == {"tags": ["a", "b"], "places": [1, [2, 3]], "by": "test"}


def test_jobs_of_a_list_join_the_callers_transaction(app: QmlApp, tmp_path: Path) -> None:
    function = app.job()(resize)
    app.storage.migrate()
    connection = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)

    connection.execute("BEGIN")
    function.using(conn=connection).enqueue_many(function.job(path) for path in "ab")
    with pytest.raises(InvalidJob, match="priority 5"):
        function.using(conn=connection, priority=5).enqueue_many([function.job("c")])
    connection.execute("COMMIT")
    connection.close()

    assert count(app) == 2


@pytest.mark.parametrize("jobs", [["thumb"], "thumb", [1], [None]])
def test_what_is_no_job_is_refused_in_a_list_of_jobs(app: QmlApp, jobs: Any) -> None:
    function = app.job()(resize)

    for enqueue_many in (app.enqueue_many, function.enqueue_many, app.storage.enqueue_many):
        with pytest.raises(
            TypeError, match=r"jobs are enqueued, as f.job\(...\) or app.make_job\(...\) makes"
        ):
            enqueue_many(jobs)
    assert count(app) == 0


def test_a_job_for_later_is_scheduled(app: QmlApp) -> None:
    job_function = app.job()(resize)
    at = datetime.now(UTC) + timedelta(hours=1)

    by_delay = job_function.using(delay="1h").enqueue("a").job()
    by_instant = job_function.using(at=at).enqueue("a").job()

    assert by_delay.state_name is by_instant.state_name is StateName.SCHEDULED
    assert by_instant.run_at == at
    assert by_delay.run_at is not None
    assert by_delay.run_at >= at


@pytest.mark.parametrize("options", [{"delay": 1, "at": datetime.now(UTC)}, {"delay": 1e13}, {"timeout": 0}])
def test_options_that_make_no_sense_are_refused(app: QmlApp, options: dict[str, Any]) -> None:
    job_function = app.job()(resize)

    with pytest.raises((InvalidJob, ConfigurationError)):
        job_function.using(**options).enqueue("a")

    assert count(app) == 0


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    "call",
    [
        lambda f: f.enqueue(),
        lambda f: f.enqueue("a", 1, 2),
        lambda f: f.enqueue("a", height=3),
        lambda f: f.enqueue(3),
        lambda f: f.enqueue("a", width=float("nan")),
        lambda f: f.enqueue("a\0b"),
        lambda f: f.enqueue("\ud800"),
        lambda f: f.enqueue("x" * 2 * 1024 * 1024),
        lambda f: f.enqueue(b"a"),
    ],
)
def test_a_wrong_argument_fails_at_once_and_nothing_is_written(
    app: QmlApp, call: Callable[[Any], object]
) -> None:
    job_function = app.job()(resize)

    with pytest.raises(InvalidJob):
        call(job_function)

    assert count(app) == 0


def test_many_jobs_are_enqueued_together_or_not_at_all(app: QmlApp) -> None:
    job_function = app.job()(resize)

    handles = app.enqueue_many(job_function.job(path) for path in ("a", "b"))
    with pytest.raises(UnknownMethod):
        app.enqueue_many([job_function.job("c"), Job.new("unheard_of")])

    assert [handle.job().payload for handle in handles] == [{"path": "a"}, {"path": "b"}]
    assert count(app) == 2


def test_a_job_is_enqueued_by_name_with_the_functions_defaults(app: QmlApp) -> None:
    app.job(queue="images")(resize)

    job = app.enqueue("resize", {"path": "a"}, priority=4).job()

    assert (job.queue, job.priority, job.payload) == ("images", 4, {"path": "a"})


@pytest.mark.fault(30)
def test_by_name_method_and_arguments_are_checked_where_the_code_is_known(app: QmlApp) -> None:
    app.job()(on_day)

    for payload in ({"day": "soon"}, {}, {"day": "2025-03-01", "x": 1}, "2025-03-01"):
        with pytest.raises(InvalidJob):
            app.enqueue("on_day", payload)  # type: ignore[arg-type]  # mypy cannot see that each is JSON
    with pytest.raises(UnknownMethod, match=r"No worker registered for method: os\.system"):
        app.enqueue("os.system", {})

    assert count(app) == 0


class Raw(TypedDict, total=False):
    kind: str
    size: int


@dataclass
class Item:
    raw: Raw
    kind: str = ""

    def __post_init__(self) -> None:
        if "kind" in self.raw:
            self.kind = self.raw.pop("kind")


@dataclass
class Link:
    size: int
    next: Link | None = None


def test_by_name_the_callers_payload_is_stored_as_it_is_whatever_the_check_of_it_runs(app: QmlApp) -> None:
    @app.job()
    def pack(item: Item) -> str:
        return item.kind

    payload: dict[str, JsonValue] = {"item": {"raw": {"kind": "box", "size": 1}}}

    with app.inline():
        handle = app.enqueue("pack", payload)

    assert handle.job().payload == payload == {"item": {"raw": {"kind": "box", "size": 1}}}
    assert handle.result == "box"


def test_by_name_a_payload_that_is_nested_too_deep_is_refused_whatever_its_type(app: QmlApp) -> None:
    @app.job()
    def follow(link: Link) -> None: ...

    chain: JsonValue = {"size": 0}
    for _ in range(1000):
        chain = {"size": 0, "next": chain}

    with pytest.raises(InvalidJob, match="nested deeper than 100 levels"):
        app.enqueue("follow", {"link": chain})


def test_a_producer_without_the_code_enqueues_any_name(app: QmlApp) -> None:
    assert app.enqueue("somebody_elses", {"x": 1}).state is StateName.ENQUEUED


def test_a_job_written_in_the_callers_transaction_shares_its_fate(app: QmlApp, tmp_path: Path) -> None:
    job_function = app.job()(resize)
    app.storage.migrate()
    connection = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)

    connection.execute("BEGIN")
    undone = job_function.using(conn=connection).enqueue("a")
    connection.execute("ROLLBACK")
    connection.execute("BEGIN")
    done = app.enqueue("resize", {"path": "b"}, conn=connection)
    connection.execute("COMMIT")
    connection.close()

    with pytest.raises(JobNotFound):
        undone.job()
    assert done.state is StateName.ENQUEUED


def test_a_connection_to_another_database_is_refused(app: QmlApp, tmp_path: Path) -> None:
    job_function = app.job()(resize)
    other = sqlite3.connect(tmp_path / "other.db")

    with pytest.raises(ConfigurationError):
        job_function.using(conn=other).enqueue("a")

    other.close()


def test_a_worker_of_the_references_level_is_enqueued_by_name(app: QmlApp) -> None:
    handle = app.register(Echo()).enqueue("echo", "any JSON")

    assert handle.job().payload == "any JSON"


@pytest.fixture(params=["plain", "tracing"])
def plain_or_tracing_app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QmlApp]:
    tracing = OpenTelemetry(TracerProvider()) if request.param == "tracing" else None
    app = QmlApp(f"sqlite:///{tmp_path / 'jobs.db'}", tracing=tracing)
    yield app
    app.close()


def test_jobs_are_enqueued_as_they_were_made(plain_or_tracing_app: QmlApp) -> None:
    app = plain_or_tracing_app
    jobs: list[Job] = []
    items: list[JsonValue] = []
    for n in range(4):
        items.append(n)
        if len(items) == 2:
            jobs.append(app.make_job("child", items))
            items.clear()

    app.enqueue_many(jobs)

    assert [job.payload for job in app.enqueued()] == [[0, 1], [2, 3]]


def test_delayed_jobs_run_inline_as_they_were_made(plain_or_tracing_app: QmlApp) -> None:
    app = plain_or_tracing_app
    ran = []

    @app.job()
    def child(items) -> None:  # type: ignore[no-untyped-def]  # an annotation has them copied
        ran.append(items)

    with app.inline():
        items = [1, 2]
        job = child.using(delay=5).job(items)
        items.clear()
        app.enqueue_many([job])

    assert ran == [[1, 2]]


def test_metadata_is_kept_as_it_was_at_any_depth() -> None:
    tags: list[JsonValue] = ["a"]
    job = Job.new("f", metadata={"tags": tags})
    tags.clear()

    assert job.metadata == {"tags": ["a"]}


@contextmanager
def busy_pool() -> Iterator[Callable[[], bool]]:
    """All threads of the loop's own pool are busy within the block; whether they are."""
    loop, may_end = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(1))
    busy = loop.run_in_executor(None, may_end.wait, PATIENCE_S)
    try:
        yield lambda: not busy.done()
    finally:
        may_end.set()


def test_coroutines_enqueue_and_wait_though_all_threads_of_their_loop_are_busy(app: QmlApp) -> None:
    function = app.job()(resize)

    async def main() -> bool:
        with busy_pool() as is_busy:
            handle = await function.aenqueue("a.png")
            await function.aenqueue_many([function.job("b.png")])
            with pytest.raises(WaitTimeout, match="still enqueued"):
                await handle.await_result(0)
            return is_busy()

    assert asyncio.run(main())
    assert count(app) == 2
