"""Client: one job as a page for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from qml_mp.cli.output import age, coloured, compact_json, local_time
from qml_mp.core.job import Job
from qml_mp.core.outcome import Attempt, ErrorInfo, ProcessFacts
from qml_mp.core.progress import Progress
from qml_mp.core.state import Deleted, Processing, Scheduled, Succeeded
from qml_mp.printable import printable, printable_lines
from qml_mp.units import format_size


def print_job(job: Job, attempts: Sequence[Attempt], progress: Progress | None) -> None:
    """What the job is, where it stands, how far it has come, and every attempt that did not succeed."""
    facts = [*_what(job), *_where(job), *([] if progress is None else [("progress", str(progress))])]
    width = max(len(name) for name, _ in facts)
    click.echo(f"{click.style(printable(job.method), bold=True)}  {coloured(str(job.state_name))}")
    for name, value in facts:
        click.echo(f"  {name.ljust(width)}  {printable(value)}")
    for attempt in attempts:
        _print_attempt(attempt)
    if job.error is not None and job.error != (attempts[-1].error if attempts else None):
        click.echo("last error")
        _print_error(job.error)


def _what(job: Job) -> Iterator[tuple[str, str]]:
    yield "id", job.id
    yield "queue", f"{job.queue}, priority {job.priority}"
    yield "payload", compact_json(job.payload) if job.payload_error is None else job.payload_error
    if job.metadata:
        yield "metadata", compact_json(dict(job.metadata))
    if job.unique_key is not None:
        yield "unique key", job.unique_key
    if job.timeout is not None:
        yield "time limit", age(job.timeout) or ""
    if job.max_retries is not None:
        yield "max retries", str(job.max_retries)
    if job.max_crashes is not None:
        yield "max crashes", str(job.max_crashes)


def _where(job: Job) -> Iterator[tuple[str, str]]:
    instants = (
        ("created", job.created_at), ("due", job.run_at), ("started", job.started_at),
        ("ended", job.finished_at), ("kept until", job.expires_at),
    )  # fmt: skip
    for name, instant in instants:
        if instant is not None:
            yield name, local_time(instant) or ""
    match job.state:
        case Processing(worker_id=worker_id, server_name=server):
            yield "running on", f"{server}, worker {worker_id}"
        case Scheduled(reason=str(reason)) | Deleted(reason=str(reason)):
            yield "reason", reason
        case Succeeded(duration=duration, result=result, not_stored=not_stored):
            yield "took", age(duration) or ""
            yield "result", compact_json(result) if not_stored is None else f"not stored: {not_stored}"
        case _:
            pass
    if job.cancel_reason is not None:
        yield "cancel asked", job.cancel_reason
    yield "so far", f"handed out {job.claim_seq}, failures {job.failures}, crashes {job.crashes}"


def _print_attempt(attempt: Attempt) -> None:
    pid = f" (pid {attempt.pid})" if attempt.pid is not None else ""
    click.echo(
        f"hand-out {attempt.claim_seq}  {coloured(str(attempt.kind))}  {local_time(attempt.started_at)}, "
        f"{age(attempt.ended_at - attempt.started_at)}, worker {printable(attempt.worker)}{pid}"
    )
    facts = ", ".join(_of_process(attempt.process))
    if facts:
        click.echo(f"  {facts}")
    if attempt.error is not None:
        _print_error(attempt.error)


def _of_process(process: ProcessFacts) -> Iterator[str]:
    if process.signal is not None:
        yield f"killed by {process.signal_name}"
    if process.exit_code is not None:
        yield f"exit code {process.exit_code}"
    if process.peak_rss_bytes is not None:
        yield f"peak memory of its worker {format_size(process.peak_rss_bytes)}"
    if process.cpu_s is not None:
        yield f"CPU of its worker {process.cpu_s:.2f}s"


def _print_error(error: ErrorInfo) -> None:
    click.echo(f"  {printable(error.type)}: {printable(error.message)}")
    for line in printable_lines(error.traceback) if error.traceback else ():
        click.echo(f"    {line}")
