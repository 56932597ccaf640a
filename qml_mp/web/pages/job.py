"""Web process: the Job screen: what the job is, what has happened to it, and what can be done about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from qml_mp.core.job import PARENT_ID, Job, check_job_id
from qml_mp.core.outcome import Attempt, AttemptKind
from qml_mp.core.payload import JsonValue
from qml_mp.core.progress import Progress
from qml_mp.core.state import AwaitingRetry, Deleted, Failed, Processing, Scheduled, StateName, Succeeded
from qml_mp.errors import ConfigurationError, InvalidJob, shown
from qml_mp.views.changing import Changing, not_found
from qml_mp.views.frames import user_frames
from qml_mp.web.audit import note, reason_of
from qml_mp.web.rendering import printable_json_lines
from qml_mp.web.site import Site, site_of

_SHOWN_CHARS = 16_000
"""Of a value as much stands on the screen; all of it behind a link."""
_MOST_ATTEMPTS = 50
_VALUES = ("payload", "result", "metadata")
_COLOUR = {
    AttemptKind.FAILURE: "failed",
    AttemptKind.CRASH: "failed",
    AttemptKind.TIMEOUT: "awaiting_retry",
    AttemptKind.CANCELLED: "deleted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A moment in the life of a job."""

    at: datetime
    state: str
    word: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """A value as JSON text in lines, of which a part is shown."""

    name: str
    text: str
    is_cut: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPage:
    """What the screen shows."""

    job: Job
    """Without payload, result and metadata, which may have mebibytes: this is kept for all browsers."""
    attempts: Sequence[Attempt]
    """That did not succeed, newest first."""
    has_older_attempts: bool
    """Which are not read: a job may have any number."""
    progress: Progress | None
    values: Sequence[Folded]
    events: Sequence[Event]
    parent_id: str | None

    @property
    def may_retry(self) -> bool:
        return self.job.state_name is StateName.FAILED

    @property
    def may_cancel(self) -> bool:
        return not self.job.state_name.is_final

    @property
    def may_delete(self) -> bool:
        return self.job.state_name not in (StateName.PROCESSING, StateName.DELETED)


def job(request: Request) -> Response:
    """One job."""
    site, job_id = site_of(request), _id(request)
    seen = _read(site, job_id)
    return site.page(
        request, "job.html", screen="jobs", seen=lambda: seen, title=seen.job.method or "(no name)",
        frames=user_frames, colour=_COLOUR,
    )  # fmt: skip


def value(request: Request) -> Response:
    """The whole payload, result or metadata, as text."""
    site, job_id = site_of(request), _id(request)
    name = request.query_params.get("what", "")
    if name not in _VALUES:
        raise ConfigurationError(f"{shown(name)} is no value of a job; one of {', '.join(_VALUES)} is.")
    found = site.storage.get(job_id)
    if found is None:
        raise not_found(job_id)
    text = json.dumps(site.masked(_value_of(found, name)), ensure_ascii=False, indent=2)
    return PlainTextResponse(
        printable_json_lines(text), headers={"content-disposition": f'inline; filename="{name}.json"'}
    )


def retry(request: Request) -> Response:
    """Enqueue a failed job again."""
    site, job_id = site_of(request), _id(request)
    site.storage.retry(job_id)
    return _done(request, job_id, "retry job", "The job is enqueued again, with fresh budgets.")


def cancel(request: Request) -> Response:
    """Delete a job that waits, ask the server to end one that runs."""
    told = _changing(request, "cancelled").cancel(_id(request))
    return _done(request, _id(request), "cancel job", f"The job is {told}.")


def delete(request: Request) -> Response:
    """Make Deleted a job that does not run."""
    told = _changing(request, "deleted").delete(_id(request))
    return _done(
        request, _id(request), "delete job", f"The job is {told}. Its row goes when its time is over."
    )


def copy(request: Request) -> Response:
    """Enqueue a new job with the same method, payload and options, save its unique key."""
    site, job_id = site_of(request), _id(request)
    found = site.storage.get(job_id)
    if found is None:
        raise not_found(job_id)
    if found.payload_error is not None:
        raise InvalidJob(f"The payload of {job_id} cannot be read, so it cannot be copied either.")
    metadata = {name: each for name, each in found.metadata.items() if name != PARENT_ID}
    new = Job.new(
        found.method, found.payload, queue=found.queue, priority=found.priority, timeout=found.timeout,
        max_retries=found.max_retries, max_crashes=found.max_crashes, metadata=metadata or None,
    )  # fmt: skip
    site.storage.enqueue(new)
    return _done(request, new.id, "copy job", f"This is a copy of {job_id}, enqueued now.", subject=job_id)


def _done(request: Request, job_id: str, what: str, sentence: str, *, subject: str | None = None) -> Response:
    site = site_of(request)
    note(request, what, subject or job_id, said=sentence)
    return site.done(request, sentence, to=site.url(request, "job", id=job_id))


def _id(request: Request) -> str:
    return check_job_id(request.path_params["id"])


def _changing(request: Request, done: str) -> Changing:
    site = site_of(request)
    return Changing.one_by_one(site.storage, retention=site.retention, reason=reason_of(request, done))


def _read(site: Site, job_id: str) -> JobPage:
    found = site.reads.get(("job", job_id), lambda: _page_of(site, job_id), statements=3)
    if found is None:
        raise not_found(job_id)
    return found


def _page_of(site: Site, job_id: str) -> JobPage | None:
    storage = site.storage
    found = storage.get(job_id)
    if found is None:
        return None
    attempts = storage.attempts(job_id, newest=_MOST_ATTEMPTS + 1)
    newest = attempts[-_MOST_ATTEMPTS:]
    parent = found.metadata.get(PARENT_ID)
    return JobPage(
        job=_without_values(found),
        attempts=newest[::-1],
        has_older_attempts=len(attempts) > len(newest),
        progress=storage.progress_of([job_id]).get(job_id),
        values=[_folded(site, found, name) for name in _VALUES if _is_there(found, name)],
        events=[*_events(found, newest)],
        parent_id=parent if isinstance(parent, str) and _is_id(parent) else None,
    )


def _without_values(job: Job) -> Job:
    state = replace(job.state, result=None) if isinstance(job.state, Succeeded) else job.state
    return replace(job, state=state, payload=None, metadata={})


def _events(job: Job, attempts: Sequence[Attempt]) -> Iterator[Event]:
    yield Event(at=job.created_at, state="enqueued", word="created")
    for attempt in attempts:
        yield Event(
            at=attempt.ended_at,
            state=_COLOUR[attempt.kind],
            word=f"hand-out {attempt.claim_seq}: {attempt.kind}",
            detail=attempt.error.type if attempt.error is not None else "",
        )
    match job.state:
        case Processing(started_at=at, worker_id=worker):
            yield Event(at=at, state="processing", word="begun", detail=worker)
        case Scheduled(enqueue_at=at):
            yield Event(at=at, state="scheduled", word="due", detail=job.state.reason or "")
        case AwaitingRetry(retry_at=at):
            yield Event(at=at, state="awaiting_retry", word="next try")
        case Succeeded(succeeded_at=at):
            if job.started_at is not None:
                yield Event(at=job.started_at, state="processing", word="begun")
            yield Event(at=at, state="succeeded", word="succeeded")
        case Failed(failed_at=at):
            yield Event(at=at, state="failed", word="failed for good")
        case Deleted(deleted_at=at, reason=reason):
            yield Event(at=at, state="deleted", word="deleted", detail=reason or "")
        case _:
            yield Event(at=job.state.enqueued_at, state="enqueued", word="waits since")


def _is_there(job: Job, name: str) -> bool:
    if name == "metadata":
        return bool(job.metadata)
    return name == "payload" or isinstance(job.state, Succeeded)


def _value_of(job: Job, name: str) -> JsonValue:
    if name == "metadata":
        return dict(job.metadata)
    return job.payload if name == "payload" else job.result


def _folded(site: Site, job: Job, name: str) -> Folded:
    """Encoded only as far as it is shown: a value may have a mebibyte."""
    parts, size = list[str](), 0
    for part in json.JSONEncoder(ensure_ascii=False, indent=2).iterencode(site.masked(_value_of(job, name))):
        parts.append(part[: _SHOWN_CHARS + 1])
        size += len(part)
        if size > _SHOWN_CHARS:
            break
    text = "".join(parts)[:_SHOWN_CHARS]
    return Folded(name=name, text=printable_json_lines(text), is_cut=size > _SHOWN_CHARS)


def _is_id(text: str) -> bool:
    try:
        return bool(check_job_id(text))
    except InvalidJob:
        return False


ROUTES = (
    Route("/jobs/{id}", job, name="job"),
    Route("/jobs/{id}/value", value, name="job_value"),
    Route("/jobs/{id}/retry", retry, methods=["POST"], name="retry_job"),
    Route("/jobs/{id}/cancel", cancel, methods=["POST"], name="cancel_job"),
    Route("/jobs/{id}/delete", delete, methods=["POST"], name="delete_job"),
    Route("/jobs/{id}/copy", copy, methods=["POST"], name="copy_job"),
)
