"""Client and worker: a span for each enqueue and each attempt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from qml_mp.core.job import Claim, ClaimKey, Job
from qml_mp.core.lost_attempt import LostAttempt
from qml_mp.core.outcome import Outcome
from qml_mp.errors import ConfigurationError, shown
from qml_mp.otel import attributes
from qml_mp.otel.carrier import carrier_of, context_in, with_carrier
from qml_mp.otel.tracers import Provider, Tracers
from qml_mp.processing.job_records import about
from qml_mp.processing.tracing import RunningAttempt, Sending
from qml_mp.units import Duration, parse_duration

logger = logging.getLogger(__name__)


class OpenTelemetry:
    """Follows the jobs of an app: `QmlApp(..., tracing=OpenTelemetry())`.

    `tracer_provider`: that of the SDK, as the program has set it up, or a function that makes it, which is
    called once in each process, before its first span: the way where workers are forked from a process that
    has imported the app (`--preload`), because no thread survives a fork. None: the global one.

    By the conventions for messaging, the span of an attempt has a trace of its own and a link to that of the
    enqueue. With `same_trace` it is its child besides, so that all is one trace, however late the job runs.

    A worker exports what has ended before it leaves, and waits `flush_timeout` for that.
    Raises `ConfigurationError` for what is no provider.
    """

    def __init__(
        self,
        tracer_provider: Provider = None,
        *,
        same_trace: bool = False,
        flush_timeout: Duration = 2,
    ) -> None:
        if not (
            tracer_provider is None or hasattr(tracer_provider, "get_tracer") or callable(tracer_provider)
        ):
            raise ConfigurationError(
                f"tracer_provider is {shown(tracer_provider)}; it must be a TracerProvider, or a function "
                "that makes one."
            )
        self._tracers = Tracers(tracer_provider)
        self._same_trace = same_trace
        self.flush_timeout = parse_duration(flush_timeout, what="flush_timeout")
        """Also what a server that stops gives its workers for it."""

    def __reduce__(self) -> tuple[Any, ...]:
        """For the program of a notebook, which is sent to its server: a provider has threads and stays here;
        the function that makes it travels."""
        given = self._tracers.given
        if given is not None and hasattr(given, "get_tracer"):
            raise ConfigurationError(
                "A tracer provider cannot be sent to a server; give OpenTelemetry a function that makes it."
            )
        return _tracing_of, (given, self._same_trace, self.flush_timeout)

    def open(self) -> None:
        """Make the provider of this process. Raises what the program's function raises."""
        self._tracers.provider()

    @contextmanager
    def sending(
        self,
        jobs: Sequence[Job],
        *,
        is_batch: bool = False,
        in_transaction: bool = False,
        parent: Job | None = None,
    ) -> Iterator[Sending]:
        """One PRODUCER span for all of the jobs, to which their metadata leads."""
        span = self._start_sending(jobs, is_batch=is_batch, parent=parent)
        if in_transaction:
            span.set_attribute("qml_mp.in_transaction", True)  # whether it commits, nobody knows here
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                yield _Sending(jobs, span)
        except Exception as error:
            span.record_exception(error)
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            raise
        finally:
            _end(span)

    def attempt(self, claim: Claim) -> RunningAttempt:
        """Begin the CONSUMER span of the attempt; the spans that its code begins are its children."""
        job = claim.job
        try:
            known = attributes.of_attempt(
                job_id=job.id,
                queue=job.queue,
                method=job.method,
                attempt=job.attempt,
                claim_seq=job.claim_seq,
                worker_id=claim.worker_id,
            )
            span, context = self._start_attempt(claim.key, job.queue, known, job.metadata)
        except Exception:
            logger.exception("The span of job %s cannot begin", job.id, extra=about(claim))
            span, context = trace.INVALID_SPAN, Context()
        return _Running(span, context)

    def lost(self, attempt: LostAttempt) -> None:
        """Export the span of an attempt of a dead worker: the very one that the worker had begun."""
        known = attributes.of_attempt(
            job_id=attempt.job_id,
            queue=attempt.queue,
            method=attempt.method,
            attempt=attempt.attempt,
            claim_seq=attempt.claim_seq,
            worker_id=attempt.worker_id,
        )
        try:
            began_ns = attributes.nanoseconds(attempt.started_at)
            span, _ = self._start_attempt(
                attempt.key, attempt.queue, known, attempt.metadata, start_time=began_ns
            )
            attributes.tell_loss(span, attempt)
            span.end(max(attributes.nanoseconds(attempt.ended_at), began_ns))
        except Exception:
            known = {"job_id": attempt.job_id, "method": attempt.method, "attempt": attempt.attempt}
            extra = {**known, "worker_id": attempt.worker_id}
            logger.exception("The span of job %s is lost", attempt.job_id, extra=extra)

    def flush(self) -> bool:
        """Export what has ended, within the time that was given for it; whether that worked."""
        return self._tracers.flush(within=self.flush_timeout)

    def _start_sending(self, jobs: Sequence[Job], *, is_batch: bool, parent: Job | None) -> trace.Span:
        given = [job for job in jobs if isinstance(job, Job)]  # what is no job is refused where it is stored
        try:
            return self._tracers.tracer().start_span(
                attributes.name_of(attributes.ENQUEUE, attributes.queue_of(given)),
                kind=SpanKind.PRODUCER,
                attributes=attributes.of_sending(given, is_batch=is_batch, parent=parent),
                links=[trace.Link(found) for job in given if (found := context_in(job.metadata))],
            )
        except Exception:
            logger.exception("The span of an enqueue cannot begin")
            return trace.INVALID_SPAN

    def _start_attempt(
        self,
        key: ClaimKey,
        queue: str,
        known: attributes.Attributes,
        metadata: Any,
        *,
        start_time: int | None = None,
    ) -> tuple[trace.Span, Context]:
        enqueued_in = context_in(metadata)
        context = Context()
        if enqueued_in is not None and self._same_trace:
            context = trace.set_span_in_context(trace.NonRecordingSpan(enqueued_in), context)
        span = self._tracers.tracer_of(key).start_span(
            attributes.name_of(attributes.PROCESS, queue),
            context=context,
            kind=SpanKind.CONSUMER,
            attributes=known,
            links=[] if enqueued_in is None else [trace.Link(enqueued_in)],
            start_time=start_time,
        )
        return span, trace.set_span_in_context(span, context)


class _Sending:
    def __init__(self, jobs: Sequence[Job], span: trace.Span) -> None:
        carrier = carrier_of(span)
        self.jobs = [with_carrier(job, carrier) if isinstance(job, Job) else job for job in jobs]
        self._span = span

    def stored(self, ids: Sequence[str]) -> None:
        """Say which of them are not new, because a unique key has its job already."""
        kept = sum(id_ != job.id for id_, job in zip(ids, self.jobs, strict=False))
        if kept:
            self._span.set_attribute("qml_mp.kept_earlier", kept)
        if kept and len(ids) == 1:
            self._span.set_attribute("messaging.message.id", ids[0])


class _Running:
    def __init__(self, span: trace.Span, context: Context) -> None:
        self._span = span
        contexts.attach(context)  # in that of the attempt, which is thrown away after it

    def end(self, outcome: Outcome) -> None:
        try:
            attributes.tell_outcome(self._span, outcome)
        except Exception:
            logger.exception("What came of a job is not told to its span")
        finally:
            _end(self._span)


def _end(span: trace.Span) -> None:
    try:
        span.end()
    except Exception:  # the program's own processors and exporters
        logger.exception("A span cannot end")


def _tracing_of(provider: Provider, same_trace: bool, flush_timeout: timedelta) -> OpenTelemetry:
    return OpenTelemetry(provider, same_trace=same_trace, flush_timeout=flush_timeout)
