"""Tests: spans of jobs across processes, however their attempts end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from qml_mp import QmlApp
from qml_mp.core.state import StateName
from qml_mp.otel import OpenTelemetry
from qml_mp.storage.store import Storage
from tests.processes.harness import Server, enqueue, few, wait_for_state, wait_until
from tests.storage.helpers import patient_url

MakeServer = Callable[..., Server]
APP = "tests.processes.apps_traces:app"
SOON = {"QML_MP_CANCEL_GRACE": "0.1", "QML_MP_TERM_GRACE": "0.1"}
Span = dict[str, Any]
_Sent = TypeVar("_Sent")


def spans(folder: Path, name: str | None = None) -> list[Span]:
    """Those that were exported, and are called so."""
    file = folder / "spans"
    lines = file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []  # the whole ones
    found: list[Span] = [json.loads(line) for line in lines]
    return [span for span in found if name in (None, span["name"])]


def attempts_of(folder: Path, job_id: str) -> list[Span]:
    """The spans of the job's attempts."""
    found = [span for span in spans(folder) if span["kind"] == "SpanKind.CONSUMER"]
    return [span for span in found if span["attributes"]["messaging.message.id"] == job_id]


def the_attempt_of(folder: Path, job_id: str) -> Span:
    """The only one, as soon as it is exported."""
    wait_until(lambda: attempts_of(folder, job_id))
    (span,) = attempts_of(folder, job_id)
    return span


def burst(
    server: MakeServer, folder: Path, enqueue: Callable[[], _Sent], *flags: str, **environment: str
) -> _Sent:
    """Enqueue, and run all of it; what was enqueued. Once more where a worker had to wait for a processor for
    so long that it was killed when it should leave: what it had not exported is lost then."""
    while True:
        for name in ("spans", "server.log"):
            (folder / name).unlink(missing_ok=True)
        sent = enqueue()
        one = server(*(flags or ("-w", "1")), "--burst", app=APP, **environment).start(ready=None)
        assert one.wait() == 0, one.log()
        if "does not leave; killing it" not in one.log():
            return sent


def ids_of(span: Span) -> tuple[str, str]:
    return span["context"]["trace_id"], span["context"]["span_id"]


def links_of(span: Span) -> list[tuple[str, str]]:
    return [(link["context"]["trace_id"], link["context"]["span_id"]) for link in span["links"]]


def told(span: Span, *names: str) -> list[object]:
    return [span["attributes"].get(name) for name in names]


def test_an_attempt_is_linked_to_its_enqueue_and_its_code_runs_within_it(
    server: MakeServer, url: str, tmp_path: Path
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    producer = QmlApp(patient_url(url), tracing=OpenTelemetry(provider))

    def send() -> str:
        exporter.clear()
        return producer.enqueue("resize", {"width": 3}, queue="images").id

    job_id = burst(server, tmp_path, send)

    producer.close()
    (sent,) = exporter.get_finished_spans()
    assert sent.context is not None
    at = f"0x{sent.context.trace_id:032x}", f"0x{sent.context.span_id:016x}"
    span, (inner,) = the_attempt_of(tmp_path, job_id), spans(tmp_path, "inner")
    assert span["name"] == "process images"
    assert links_of(span) == [at]
    assert span["parent_id"] is None
    assert span["status"]["status_code"] == "UNSET"
    assert told(span, "qml_mp.method", "qml_mp.attempt", "qml_mp.claim_seq", "qml_mp.outcome") == [
        "resize", 1, 1, "succeeded"
    ]  # fmt: skip
    assert inner["parent_id"] == span["context"]["span_id"]
    assert inner["context"]["trace_id"] == span["context"]["trace_id"]
    assert inner["pid"] == span["pid"] != os.getpid()


def test_jobs_that_a_job_enqueues_lead_back_to_its_attempt(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    job_id = burst(server, tmp_path, lambda: enqueue(storage, "leads_on"))

    parent = the_attempt_of(tmp_path, job_id)
    sent = [span for span in spans(tmp_path) if span["kind"] == "SpanKind.PRODUCER"]
    assert {span["parent_id"] for span in sent} == {parent["context"]["span_id"]}
    assert {span["name"] for span in sent} == {"enqueue default", "enqueue images"}
    received = [span for span in spans(tmp_path) if span["kind"] == "SpanKind.CONSUMER"]
    assert {*map(ids_of, sent)} == {link for span in received for link in links_of(span)}
    (follow_up,) = (span for span in sent if span["name"] == "enqueue default")
    assert told(follow_up, "qml_mp.parent_id", "qml_mp.method") == [job_id, "tells_its_span"]


def test_each_attempt_that_fails_says_why_and_what_becomes_of_the_job(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    job_id = burst(server, tmp_path, lambda: enqueue(storage, "fails"))

    first, second = sorted(attempts_of(tmp_path, job_id), key=lambda span: span["start_time"])
    states = [told(span, "qml_mp.outcome", "qml_mp.job.state", "error.type") for span in (first, second)]
    assert states == [["failure", "awaiting_retry", "ValueError"], ["failure", "failed", "ValueError"]]
    assert first["status"] == {"status_code": "ERROR", "description": "ValueError: no such picture"}
    (event,) = first["events"]
    assert "raise ValueError" in event["attributes"]["exception.stacktrace"]
    assert first["context"]["trace_id"] != second["context"]["trace_id"]


def test_the_span_of_a_worker_that_was_killed_is_exported_by_another(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    one = server("-w", "2", app=APP).start(ready=2)
    pids = set(one.worker_pids().values())

    job_id = enqueue(storage, "dies")

    span = the_attempt_of(tmp_path, job_id)
    (attempt,) = storage.attempts(job_id)
    assert wait_for_state(storage, job_id, StateName.FAILED).crashes == 1
    assert told(span, "qml_mp.outcome", "qml_mp.job.state", "qml_mp.worker.died", "error.type") == [
        "crash", "failed", True, "WorkerCrashed"
    ]  # fmt: skip
    assert told(span, "process.pid", "qml_mp.worker.signal") == [attempt.pid, signal.SIGKILL]
    assert span["status"]["status_code"] == "ERROR"
    assert "was killed by SIGKILL" in span["status"]["description"]
    assert abs((datetime.fromisoformat(span["start_time"]) - attempt.started_at).total_seconds()) < 0.001
    assert abs((datetime.fromisoformat(span["end_time"]) - attempt.ended_at).total_seconds()) < 0.001
    assert attempt.pid in pids
    assert span["pid"] != attempt.pid
    assert len(attempts_of(tmp_path, job_id)) == 1
    assert one.stop() == 0


@few("method", ["takes_too_long"], nightly=["takes_too_long_and_heeds_nothing"])
def test_the_span_of_a_job_past_its_time_limit_ends_as_a_timeout(
    server: MakeServer, storage: Storage, tmp_path: Path, method: str
) -> None:
    dies = method.endswith("nothing")
    # A crowded machine does not use up the first: by then the one that heeds nothing holds the lock.
    graces = {**SOON, "QML_MP_CANCEL_GRACE": "3"} if dies else {**SOON, "QML_MP_TERM_GRACE": "60"}

    job_id = burst(server, tmp_path, lambda: enqueue(storage, method), **graces)

    wait_for_state(storage, job_id, StateName.FAILED)
    if not attempts_of(tmp_path, job_id):  # the only worker died: the next one exports it
        server("-w", "1", app=APP).start()
    span = the_attempt_of(tmp_path, job_id)
    assert told(span, "qml_mp.outcome", "qml_mp.job.state", "error.type", "qml_mp.worker.died") == [
        "timeout", "failed", "JobTimeout", True if dies else None
    ]  # fmt: skip
    assert span["status"]["status_code"] == "ERROR"


@pytest.mark.nightly
def test_with_preload_each_worker_makes_a_provider_of_its_own(
    server: MakeServer, storage: Storage, tmp_path: Path
) -> None:
    def some() -> list[str]:
        return [enqueue(storage, "resize", width=n) for n in range(20)]

    job_ids = burst(server, tmp_path, some, "-w", "2", "--preload")

    assert sorted(job_ids) == sorted(
        span["attributes"]["messaging.message.id"] for span in spans(tmp_path, "process default")
    )
    assert len(spans(tmp_path, "inner")) == 20
