"""Tests: jobs whose spans are exported into a file, one line each, by whichever process ends them."""

from __future__ import annotations

import collections
import itertools
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from qml_mp import QmlApp, RetryPolicy, WorkerContext
from qml_mp.otel import OpenTelemetry


class IntoFile(SpanExporter):
    """Appends each span with the pid of who exports it."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        text = "".join(
            json.dumps({**json.loads(span.to_json(indent=None)), "pid": os.getpid()}) + "\n" for span in spans
        )
        descriptor = os.open(_file(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
        return SpanExportResult.SUCCESS


def make_provider() -> TracerProvider:
    """One whose own thread exports nothing before a test is over: only a flush does."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(IntoFile(), schedule_delay_millis=600_000))
    trace.set_tracer_provider(provider)  # for the program's own spans
    return provider


# Without graces of their own, which would win over those that a test sets.
app = QmlApp(tracing=OpenTelemetry(make_provider))


def _file() -> Path:
    return Path(os.environ["QML_TEST_JOURNAL"]).parent / "spans"


@app.job(queue="images")
def resize(width: int) -> int:
    """It has a span of its own."""
    with trace.get_tracer("the program").start_as_current_span("inner"):
        return width


@app.job()
def tells_its_span() -> str:
    """That which runs, as W3C writes it."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x} {context.span_id:016x}"


@app.job()
def leads_on(ctx: WorkerContext) -> None:
    """One job follows, another one is enqueued at once."""
    ctx.then(tells_its_span.job())
    resize.enqueue(1)


@app.job(retry=RetryPolicy.fixed(0, max_attempts=2))
def fails() -> None:
    raise ValueError("no such picture")


@app.job(max_crashes=1)
def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.job(timeout=0.2, retry=RetryPolicy.none())
def takes_too_long() -> None:
    time.sleep(600)  # past its time limit


@app.job(timeout=0.2, retry=RetryPolicy.none())
def takes_too_long_and_heeds_nothing() -> None:
    _hold_the_lock()


def _hold_the_lock() -> None:
    """Say that it has begun; then a loop in C that looks at no signal, for ever."""
    (_file().parent / "begun").touch()
    collections.deque(itertools.repeat(None), maxlen=0)
