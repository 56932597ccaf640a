"""Client and worker: jobs as OpenTelemetry's spans, by `QmlApp(..., tracing=OpenTelemetry())`. An extra."""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("opentelemetry") is None or find_spec("opentelemetry.trace") is None:
    raise ImportError("Traces need the extra `otel`: pip install 'qml-mp[otel]'.", name="opentelemetry")

from qml_mp.otel.tracing import OpenTelemetry

__all__ = ["OpenTelemetry"]
