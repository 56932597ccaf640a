"""A job has the payload and metadata that it was made with, whatever becomes of the caller's own objects."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider

from qml_mp import Job, QmlApp, testing
from qml_mp.core.outcome import Extras, Success
from qml_mp.core.payload import JsonValue
from qml_mp.ipc.outcome_bytes import outcome_bytes, outcome_of
from qml_mp.otel import OpenTelemetry
from qml_mp.storage.storable import new_row


@pytest.fixture(params=["plain", "tracing"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[QmlApp]:
    tracing = OpenTelemetry(TracerProvider()) if request.param == "tracing" else None
    app = QmlApp(f"sqlite:///{tmp_path / 'jobs.db'}", tracing=tracing)
    yield app
    app.close()


def test_jobs_are_enqueued_as_they_were_made(app: QmlApp) -> None:
    jobs: list[Job] = []
    items: list[JsonValue] = []
    for n in range(4):
        items.append(n)
        if len(items) == 2:
            jobs.append(app.make_job("child", items))
            items.clear()

    app.enqueue_many(jobs)

    assert [job.payload for job in app.enqueued()] == [[0, 1], [2, 3]]


def test_delayed_jobs_run_inline_as_they_were_made(app: QmlApp) -> None:
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


def test_follow_up_jobs_stay_as_they_were_made_on_their_way_through_shared_memory() -> None:
    context = testing.context()
    items: list[JsonValue] = [1, 2]
    context.then(Job.new("child", items))
    items.clear()

    follow_ups = tuple(testing.follow_ups_of(context))
    done = Success(result=None, duration=timedelta(), extras=Extras(follow_ups=follow_ups))
    data = outcome_bytes(done, is_plain=False)
    assert data is not None
    read = outcome_of(data, is_plain=False, ran_us=0)

    assert isinstance(read, Success)
    assert read.extras is not None
    for job in (*follow_ups, *read.extras.follow_ups):
        assert (job.payload, new_row(job).payload) == ([1, 2], "[1,2]")


def test_metadata_is_kept_as_it_was_at_any_depth() -> None:
    tags: list[JsonValue] = ["a"]
    job = Job.new("f", metadata={"tags": tags})
    tags.clear()

    assert job.metadata == {"tags": ["a"]}
