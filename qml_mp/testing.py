"""Client: for tests of user code: contexts for job functions that are called directly, and a real server.

`app.inline()` runs jobs where they are enqueued, and `app.enqueued(method)` tells what was. The pytest
plugin, which pytest finds by itself, has fixtures of all this. Nothing here needs pytest.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from qml_mp.child.source import NamedProgram
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo
from qml_mp.core.payload import JsonValue
from qml_mp.core.progress import Progress
from qml_mp.core.state import Processing
from qml_mp.embedding.remote import RemoteSupervisor, spawn_supervisor
from qml_mp.errors import ConfigurationError, QmlError, shown
from qml_mp.loading import load_app
from qml_mp.processing.board import Board
from qml_mp.processing.cancel import CancelReason, CancelToken
from qml_mp.processing.context import WorkerContext
from qml_mp.processing.errors_text import describe_anything
from qml_mp.settings import ServerConfig
from qml_mp.storage.store import Storage

_STDERR = 2


class SaidProgress:
    """What a job has said with `ctx.progress`, all of it, in order."""

    def __init__(self) -> None:
        self.said: list[Progress] = []
        self.newest_job: Job | None = None

    def show(self, job: Job, done: float, total: float | None, note: str) -> None:
        """Keep it."""
        self.newest_job = job
        note.encode(errors="replace")  # as a worker does, which has room for text alone
        self.said.append(Progress(done=float(done), total=None if total is None else float(total), note=note))

    def newest_of(self, job: Job) -> Progress | None:  # noqa: ARG002
        """The last of it."""
        return self.said[-1] if self.said else None


def context(
    *,
    method: str = "job",
    payload: JsonValue = None,
    attempt: int = 1,
    previous_exception: ErrorInfo | BaseException | None = None,
    cancelled: bool | str = False,
    job: Job | None = None,
) -> WorkerContext:
    """A context for calling a job function directly: `resize(testing.context(attempt=2), "a.png")`.

    With `cancelled`, `ctx.cancel` says that the job should end: as cancelled from outside, or for the reason
    given ("timeout", "shutdown"); else nobody ever cancels it. `job` is the row, when more of it matters.
    `progress_of` and `follow_ups_of` tell afterwards what the function said.
    """
    if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 1:
        raise ConfigurationError(f"attempt is {shown(attempt)}; it must be a whole number from 1.")
    now = datetime.now(UTC)
    error = previous_exception
    if isinstance(error, BaseException):
        error = describe_anything(error)
    row = replace(
        Job.new(method, payload) if job is None else job,
        state=Processing(started_at=now, worker_id="test", server_name="test", enqueued_at=now),
        claim_seq=attempt,
        failures=attempt - 1,
        last_error=error,
        started_at=now,
    )
    return WorkerContext.of(row, started_at=now, cancel=_token(cancelled), board=Board(SaidProgress()))


def progress_of(ctx: WorkerContext) -> list[Progress]:
    """All that was said with `ctx.progress` of a context made here, in order."""
    if not isinstance(ctx.board.progress, SaidProgress):
        raise ConfigurationError("progress_of takes a context that testing.context() has made.")
    return list(ctx.board.progress.said)


def follow_ups_of(ctx: WorkerContext) -> list[Job]:
    """The jobs that `ctx.then` was given, in order."""
    return [job for said in ctx.board.follow_ups.values() for job in said.jobs()]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningServer:
    """A server in processes of its own, as `qml-mp start` runs it."""

    process: RemoteSupervisor
    log_file: Path

    def log(self) -> str:
        """What it and its workers have written to standard error."""
        return self.log_file.read_text(errors="replace")


def settings(app: str, *, workers: int = 2) -> ServerConfig:
    """Of a server for tests of the app ("module:attribute"), which is imported here: the app's own, and its
    queues, as `qml-mp start` has them; but so many workers, and no page and metrics, whose addresses may be
    taken. The environment and the settings file are not read: a test is the same wherever it runs.

    Raises `AppImportError`.
    """
    program = load_app(app).program
    config = program.config or ServerConfig()
    queues = config.queues if "queues" in config.given else program.queues
    return replace(config, queues=queues, worker_count=workers, web=None, web_hosts=None, metrics=None)


@contextmanager
def server(
    app: str, storage: Storage, *, config: ServerConfig | None = None, log_file: Path
) -> Iterator[RunningServer]:
    """Within the block, a server of the app ("module:attribute") runs on the storage, with `config`, else
    with what `settings` makes. It is a fresh interpreter with this one's `sys.path`, and its log is in the
    file.

    Raises what `BackgroundJobServer.start` and `settings` do. At the end of the block it is stopped, and
    killed when it has not ended within `shutdown_timeout`.
    """
    config = config or settings(app)
    storage.list_servers()  # connects, and makes the schema when there is none
    with log_file.open("ab") as log, _standard_error(log.fileno()):
        process = spawn_supervisor(config, storage.url, NamedProgram(spec=app), log_level=logging.INFO)
    running = RunningServer(process=process, log_file=log_file)
    try:
        try:
            process.wait_until_ready(2 * config.boot_timeout.total_seconds())
        except QmlError as error:
            error.add_note(f"The log of the server:\n{running.log()}")
            raise
        yield running
    finally:
        process.stop(timeout_s=config.shutdown_timeout.total_seconds())


@contextmanager
def _standard_error(fd: int) -> Iterator[None]:
    """Within the block, what this process starts writes its errors there."""
    kept = os.dup(_STDERR)
    try:
        os.dup2(fd, _STDERR)
        yield
    finally:
        os.dup2(kept, _STDERR)
        os.close(kept)


def _token(cancelled: bool | str) -> CancelToken:
    if cancelled is False:
        return CancelToken.never()
    try:
        reason = CancelReason.CANCELLED if cancelled is True else CancelReason(cancelled)
    except ValueError:
        reasons = ", ".join(repr(str(reason)) for reason in CancelReason)
        raise ConfigurationError(
            f"cancelled is {shown(cancelled)}; it must be True, False or one of {reasons}."
        ) from None
    return CancelToken(lambda _: (reason, f"{reason} by the test"))
