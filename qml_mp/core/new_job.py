"""Anywhere: a job that is not stored yet: changed, and as JSON, as which it may lie in shared memory."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from qml_mp.core.job import Job
from qml_mp.core.state import Enqueued, Scheduled

_AS_THEY_ARE = (
    "id", "method", "queue", "priority", "max_retries", "max_crashes", "unique_key", "on_conflict",
)  # fmt: skip
_INSTANTS = ("created_at", "run_at")
_DURATIONS = ("timeout", "unique_for")
_MICROSECOND = timedelta(microseconds=1)


def with_changes(job: Job, **changes: Any) -> Job:
    """The job with other metadata or another state, and with the payload that it was made with: `replace`
    would take the caller's own lists and objects as they are by now."""
    text = job._payload_text
    if text is None:
        return replace(job, **changes)
    changed = replace(job, payload=json.loads(text), **changes)
    object.__setattr__(changed, "_payload_text", text)
    return changed


def new_job_to_json(job: Job) -> dict[str, Any]:
    """All of it that its row will hold, and how the row is to be written."""
    fields = {name: getattr(job, name) for name in (*_AS_THEY_ARE, *_INSTANTS, *_DURATIONS)}
    for name in _INSTANTS:
        fields[name] = fields[name] and fields[name].isoformat()
    for name in _DURATIONS:
        fields[name] = None if fields[name] is None else fields[name] // _MICROSECOND
    return {**fields, "payload": job.payload_text(), "metadata": dict(job.metadata)}


def new_job_of(fields: dict[str, Any]) -> Job:
    """The way back. Raises `KeyError`, `TypeError` or `ValueError` for what did not come from there."""
    given = {**fields, "payload": json.loads(fields["payload"])}
    for name in _INSTANTS:
        given[name] = given[name] and datetime.fromisoformat(given[name])
    for name in _DURATIONS:
        given[name] = None if given[name] is None else timedelta(microseconds=given[name])
    created_at, run_at = given["created_at"], given["run_at"]
    state = (
        Enqueued(enqueued_at=created_at, queue=given["queue"])
        if run_at is None
        else Scheduled(scheduled_at=created_at, enqueue_at=run_at)
    )
    return Job(state=state, **given)
