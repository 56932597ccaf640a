"""Client and worker: the way of a span's context through the metadata of a job, as W3C writes it."""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from qml_mp.core.job import Job
from qml_mp.core.lost_attempt import MOST_LINK_CHARS, TRACEPARENT, TRACESTATE
from qml_mp.core.new_job import with_changes
from qml_mp.core.payload import MAX_PAYLOAD_BYTES, JsonValue, encode_json

_ROOM_BYTES = 2 * MOST_LINK_CHARS


def carrier_of(span: trace.Span) -> dict[str, str]:
    """What leads to the span; empty: nothing does."""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span, Context()))
    return {key: value for key, value in carrier.items() if len(value) <= MOST_LINK_CHARS}


def with_carrier(job: Job, carrier: Mapping[str, str]) -> Job:
    """The job, whose metadata leads where the carrier does. A job whose metadata leads somewhere already
    stays as it is, and so does one whose metadata has no room for it."""
    if TRACEPARENT not in carrier or TRACEPARENT in job.metadata or not _has_room(job.metadata):
        return job
    return with_changes(job, metadata={**carrier, **job.metadata})


def context_in(metadata: Mapping[str, object]) -> trace.SpanContext | None:
    """Where the metadata leads to; None: nowhere."""
    carrier = {
        key: value
        for key in (TRACEPARENT, TRACESTATE)
        if isinstance(value := metadata.get(key), str) and len(value) <= MOST_LINK_CHARS
    }
    if TRACEPARENT not in carrier:
        return None
    found = TraceContextTextMapPropagator().extract(carrier, Context())
    context = trace.get_current_span(found).get_span_context()
    return context if context.is_valid else None


def _has_room(metadata: Mapping[str, JsonValue]) -> bool:
    """What cannot be stored anyway is refused where it is stored."""
    if not metadata:
        return True
    try:
        text = encode_json(dict(metadata), what="metadata")
    except Exception:
        return False
    return len(text.encode()) + _ROOM_BYTES <= MAX_PAYLOAD_BYTES
