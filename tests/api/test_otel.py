"""Spans of jobs within one process."""

from __future__ import annotations

import asyncio
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    SimpleSpanProcessor,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from qml_mp import ConfigurationError, InvalidJob, Job, QmlApp, RetryPolicy, WorkerContext
from qml_mp.otel import OpenTelemetry
from tests.unit.processor_case import keys_of

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def make(tmp_path: Path, provider: TracerProvider) -> Iterator[Callable[..., QmlApp]]:
    made: list[QmlApp] = []

    def make(**options: Any) -> QmlApp:
        app = QmlApp(f"sqlite:///{tmp_path / 'jobs.db'}", tracing=OpenTelemetry(provider, **options))
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


def only(exporter: InMemorySpanExporter, kind: SpanKind = SpanKind.PRODUCER) -> ReadableSpan:
    (span,) = (span for span in exporter.get_finished_spans() if span.kind is kind)
    return span


def traceparent_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}"


def test_an_enqueue_is_a_producer_span_within_the_callers(
    make: Callable[..., QmlApp], exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    app = make()

    with provider.get_tracer("web").start_as_current_span("request") as request:
        handle = app.enqueue("resize", {"width": 3}, queue="images")

    span, job = only(exporter), app.enqueued()[0]
    assert (span.name, span.parent) == ("enqueue images", request.get_span_context())
    assert dict(span.attributes or {}) == {
        "messaging.system": "qml_mp",
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.destination.name": "images",
        "messaging.message.id": handle.id,
        "qml_mp.method": "resize",
    }
    assert job.id == handle.id
    assert set(job.metadata) == {"traceparent"}
    assert str(job.metadata["traceparent"]).startswith(traceparent_of(span))


def test_many_jobs_are_one_span_to_which_all_of_them_lead(
    make: Callable[..., QmlApp], exporter: InMemorySpanExporter
) -> None:
    app = make()

    app.enqueue_many([app.make_job("a", queue="one"), app.make_job("b", queue="two", metadata={"k": 1})])

    span, jobs = only(exporter), app.enqueued()
    attributes = dict(span.attributes or {})
    assert span.name == "enqueue"
    assert attributes["messaging.batch.message_count"] == 2
    assert not {"messaging.message.id", "messaging.destination.name", "qml_mp.method"} & set(attributes)
    assert [str(job.metadata["traceparent"])[:-3] for job in jobs] == 2 * [traceparent_of(span)]
    assert jobs[1].metadata["k"] == 1


def test_a_context_that_the_caller_gives_stays_and_the_span_is_linked_to_it(
    make: Callable[..., QmlApp], exporter: InMemorySpanExporter
) -> None:
    app = make()

    app.enqueue("a", metadata={"traceparent": TRACEPARENT, "k": "v"})
    app.enqueue("b", metadata={"traceparent": ["mine"]})

    given, odd = app.enqueued()
    first, second = exporter.get_finished_spans()
    assert given.metadata == {"traceparent": TRACEPARENT, "k": "v"}
    assert odd.metadata == {"traceparent": ["mine"]}
    (link,) = first.links
    assert f"{link.context.trace_id:032x}" == TRACEPARENT[3:35]
    assert not second.links


def test_jobs_of_the_callers_transaction_say_that_it_is_the_caller_who_commits(
    make: Callable[..., QmlApp], exporter: InMemorySpanExporter, tmp_path: Path
) -> None:
    app = make()
    app.storage.migrate()
    connection = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")

    app.enqueue("a", conn=connection)
    connection.execute("ROLLBACK")
    connection.close()

    assert (only(exporter).attributes or {})["qml_mp.in_transaction"] is True
    assert app.enqueued() == []


def test_an_enqueue_that_fails_is_an_error(
    make: Callable[..., QmlApp], exporter: InMemorySpanExporter
) -> None:
    app = make()
    bad = Job.new("a")
    object.__setattr__(bad, "payload", object())
    object.__setattr__(bad, "_payload_text", None)

    with pytest.raises(InvalidJob):
        app.enqueue_many([bad])

    span = only(exporter)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == "InvalidJob"
    assert app.enqueued() == []


def test_without_blocking_it_is_the_same(
    make: Callable[..., QmlApp], exporter: InMemorySpanExporter, provider: TracerProvider
) -> None:
    app = make()

    async def main() -> None:
        with provider.get_tracer("web").start_as_current_span("request"):
            await app.aenqueue("a")

    asyncio.run(main())

    assert only(exporter).parent is not None
    app.close()


@pytest.mark.parametrize("same_trace", [False, True])
def test_an_attempt_is_a_consumer_span_in_a_trace_of_its_own_unless_wanted_otherwise(
    make: Callable[..., QmlApp], exporter: InMemorySpanExporter, same_trace: bool
) -> None:
    app = make(same_trace=same_trace)

    @app.job()
    def work() -> bool:
        return trace.get_current_span().get_span_context().is_valid

    with app.inline():
        handle = work.enqueue()
        assert handle.wait() is True

    sent, span = only(exporter), only(exporter, SpanKind.CONSUMER)
    assert sent.context is not None
    assert span.context is not None
    assert [link.context.span_id for link in span.links] == [sent.context.span_id]
    assert (span.context.trace_id == sent.context.trace_id) is same_trace
    assert (span.parent is not None) is same_trace
    assert not trace.get_current_span().get_span_context().is_valid


def test_attempts_tell_how_they_ended(make: Callable[..., QmlApp], exporter: InMemorySpanExporter) -> None:
    app = make()

    @app.job(retry=RetryPolicy.fixed(1, max_attempts=2))
    def fails(ctx: WorkerContext) -> None:
        raise ValueError(f"no {ctx.attempt}")

    with app.inline():
        fails.enqueue()

    first, second = (span for span in exporter.get_finished_spans() if span.kind is SpanKind.CONSUMER)
    told = [
        [
            (span.attributes or {}).get(f"qml_mp.{name}")
            for name in ("attempt", "outcome", "job.state", "retry_in_s")
        ]
        for span in (first, second)
    ]
    assert told[0][:3] == [1, "failure", "awaiting_retry"]
    assert told[0][3] is not None
    assert told[1] == [2, "failure", "failed", None]
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "ValueError: no 1")
    assert first.context != second.context
    (event,) = first.events
    assert "test_otel.py" in str((event.attributes or {})["exception.stacktrace"])


def test_what_the_programs_tracing_raises_fails_no_job(
    make: Callable[..., QmlApp], provider: TracerProvider, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(SpanProcessor):
        def on_start(self, span: object, parent_context: object = None) -> None:
            raise RuntimeError("no span for you")

    provider.add_span_processor(Broken())
    app = make()

    @app.job()
    def work() -> int:
        return 1

    with app.inline():
        handle = work.enqueue()
        assert handle.wait() == 1

    [told] = [each for each in caplog.records if f"of job {handle.id} cannot begin" in each.message]
    assert keys_of(told) == (handle.id, "work", 1, "inline")


def test_without_an_sdk_nothing_is_written_and_nothing_is_to_be_flushed(tmp_path: Path) -> None:
    tracing = OpenTelemetry(trace.NoOpTracerProvider())
    app = QmlApp(f"sqlite:///{tmp_path / 'jobs.db'}", tracing=tracing)

    app.enqueue("a")

    assert app.enqueued()[0].metadata == {}
    assert tracing.flush()
    app.close()


def test_what_is_no_provider_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="tracer_provider is 5; it must be a TracerProvider, or"):
        OpenTelemetry(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "tracing",
    [OpenTelemetry, TracerProvider(), object(), 0],
    ids=["a class", "a provider", "an object", "a number"],
)
def test_what_follows_no_jobs_is_refused_where_it_is_given(tracing: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^tracing is .*; it must be an object with .*OpenTelemetry\(\)"
    ):
        QmlApp("memory://", tracing=tracing)


def test_who_does_not_trace_imports_nothing_of_it(tmp_path: Path) -> None:
    program = """
import sys
from qml_mp import QmlApp
app = QmlApp("memory://")
@app.job()
def work(): return 1
with app.inline():
    assert work.enqueue().wait() == 1
print([name for name in sys.modules if "opentelemetry" in name or name.startswith("qml_mp.otel")])
"""

    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )

    assert run.stdout == "[]\n"


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['opentelemetry'] = None; import qml_mp.otel"

    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert run.stderr.splitlines()[-1] == (
        "ImportError: Traces need the extra `otel`: pip install 'qml-mp[otel]'."
    )


def make_nothing() -> trace.TracerProvider:
    """A provider that keeps nothing."""
    return trace.NoOpTracerProvider()


def test_a_tracing_travels_to_a_server_by_the_function_that_makes_its_provider(
    provider: TracerProvider,
) -> None:
    copied = pickle.loads(pickle.dumps(OpenTelemetry(make_nothing, same_trace=True)))

    assert isinstance(copied, OpenTelemetry)
    assert copied.flush()
    with pytest.raises(ConfigurationError, match="give OpenTelemetry a function that makes it"):
        pickle.dumps(OpenTelemetry(provider))
