"""Tests: a job as a value: its state, its ids, its JSON."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, get_args

import pytest

from qml_mp.core.job import Claim, ClaimKey, Job, check_job_id, new_job_id
from qml_mp.core.outcome import Attempt, AttemptKind, ErrorInfo, ProcessFacts, attempt_to_json
from qml_mp.core.server_info import new_server_id
from qml_mp.core.state import (
    FINAL_STATES,
    TRANSITIONS,
    AwaitingRetry,
    Deleted,
    Enqueued,
    JobState,
    Processing,
    Scheduled,
    StateName,
    Succeeded,
)
from qml_mp.errors import ConfigurationError, InvalidJob

NOW = datetime(2025, 3, 1, 12, tzinfo=UTC)


def test_a_new_job_is_enqueued_now() -> None:
    job = Job.new("resize", {"path": "a.png"}, queue="images", now=NOW)

    assert job.state == Enqueued(enqueued_at=NOW, queue="images")
    assert job.state_name is StateName.ENQUEUED
    assert (job.failures, job.crashes, job.claim_seq) == (0, 0, 0)
    assert job.result is None


def test_a_job_for_later_is_scheduled_in_utc() -> None:
    at = datetime(2025, 3, 1, 15, tzinfo=timezone(timedelta(hours=2)))

    job = Job.new("resize", at=at, now=NOW)

    assert job.state == Scheduled(scheduled_at=NOW, enqueue_at=datetime(2025, 3, 1, 13, tzinfo=UTC))
    assert job.run_at == datetime(2025, 3, 1, 13, tzinfo=UTC)


@pytest.mark.parametrize(
    "at",
    [
        datetime(9999, 12, 31, tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
        datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_an_instant_that_no_job_can_be_due_at_is_refused(at: datetime) -> None:
    with pytest.raises(InvalidJob, match="up to 9999-12-30"):
        Job.new("resize", at=at)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": ""},
        {"method": "x" * 201},
        {"method": None},
        {"method": "a\0b"},
        {"payload": float("nan")},
        {"payload": object()},
        {"priority": 2**31},
        {"priority": 1.5},
        {"priority": True},
        {"max_retries": -1},
        {"max_retries": "many"},
        {"max_retries": 10**5000},
        {"priority": 10**5000},
        {"timeout": 5},
        {"unique_key": 5},
        {"metadata": [1]},
        {"timeout": timedelta(0)},
        {"timeout": -timedelta(seconds=1)},
        {"timeout": timedelta(days=36_526)},
        {"delay": timedelta(days=36_526)},
        {"unique_key": "a", "unique_for": timedelta(days=36_526)},
        {"unique_key": ""},
        {"unique_key": "k" * 501},
        {"unique_key": "a\0"},
        {"metadata": {"a": {1}}},
        {"at": datetime(2025, 1, 1)},  # noqa: DTZ001 - naive is what is refused
        {"at": "tomorrow"},
    ],
)
def test_a_job_that_cannot_be_stored_is_refused(wrong: dict[str, Any]) -> None:
    method = wrong.pop("method", "resize")

    with pytest.raises(InvalidJob):
        Job.new(method, **wrong)


def test_a_queue_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="queue name"):
        Job.new("resize", queue="a b")


def test_a_result_is_seen_once_the_job_has_succeeded() -> None:
    job = Job.new("resize", now=NOW)

    done = replace(
        job, state=Succeeded(succeeded_at=NOW, duration=timedelta(seconds=1), result={"width": 640})
    )

    assert done.result == {"width": 640}
    assert done.error is None


def test_the_error_is_that_of_the_state() -> None:
    error = ErrorInfo(type="KeyError", message="'a'")
    waiting = AwaitingRetry(scheduled_at=NOW, retry_at=NOW, retry_count=1, last_exception=error)

    assert replace(Job.new("resize", now=NOW), state=waiting).error == error


def test_a_job_prints_as_json_with_every_designed_key() -> None:
    attempt = Attempt(
        kind=AttemptKind.CRASH,
        claim_seq=1,
        worker="w",
        pid=7,
        started_at=NOW,
        ended_at=NOW,
        error=None,
        process=ProcessFacts(signal=9, peak_rss_bytes=1024),
    )

    printed = Job.new("resize", {"path": "a"}, now=NOW).to_json((attempt,))

    assert set(printed) == {
        "id", "method", "queue", "priority", "state", "payload", "result", "failures", "crashes", "claim_seq",
        "created_at", "run_at", "started_at", "finished_at", "expires_at", "unique_key", "timeout_s",
        "max_retries", "max_crashes", "metadata", "server_id", "worker_id", "cancel_reason", "reason",
        "last_error", "attempts",
    }  # fmt: skip
    assert set(attempt_to_json(attempt)) == {
        "kind", "claim_seq", "worker", "pid", "started_at", "ended_at", "error", "signal", "exit_code",
        "peak_rss_bytes", "cpu_s",
    }  # fmt: skip
    assert json.loads(json.dumps(printed))["created_at"] == "2025-03-01T12:00:00+00:00"


def test_what_was_asked_of_a_job_is_in_its_json() -> None:
    options: dict[str, Any] = {
        "unique_key": "k",
        "max_retries": 0,
        "max_crashes": 2,
        "metadata": {"by": "me"},
    }
    wishes = {**options, "timeout_s": 90.0}

    job = Job.new("resize", timeout=timedelta(seconds=90), now=NOW, **options)

    assert {name: job.to_json()[name] for name in wishes} == wishes
    assert {Job.new("resize").to_json()[name] for name in wishes if name != "metadata"} == {None}


def test_where_a_job_runs_and_why_it_ended_is_in_its_json() -> None:
    def told(job: Job) -> list[object]:
        return [job.to_json()[name] for name in ("server_id", "worker_id", "cancel_reason", "reason")]

    job = Job.new("resize", now=NOW)
    running = Processing(started_at=NOW, worker_id="w", server_name="web#1")

    assert told(job) == [None] * 4
    assert told(replace(job, state=running, cancel_reason="enough")) == ["web#1", "w", "enough", None]
    assert told(replace(job, state=Deleted(deleted_at=NOW, reason="enough"))) == [None, None, None, "enough"]
    later = Scheduled(scheduled_at=NOW, enqueue_at=NOW, reason="asked for")
    assert told(replace(job, state=later)) == [None, None, None, "asked for"]


def test_a_claims_key_fences_its_writes() -> None:
    job = Job.new("resize", now=NOW)

    assert Claim(job=job, worker_id="w", server_id="s").key == ClaimKey(job_id=job.id, claim_seq=0)


S = StateName
REFERENCE = {
    S.ENQUEUED: {S.PROCESSING, S.DELETED, S.SCHEDULED, S.FAILED},
    S.SCHEDULED: {S.ENQUEUED, S.DELETED},
    S.PROCESSING: {S.SUCCEEDED, S.FAILED, S.AWAITING_RETRY, S.DELETED, S.ENQUEUED},
    S.AWAITING_RETRY: {S.ENQUEUED, S.DELETED},
    S.FAILED: {S.ENQUEUED, S.AWAITING_RETRY, S.DELETED},
    S.SUCCEEDED: {S.DELETED},
    S.DELETED: set[StateName](),
}


@pytest.mark.parametrize("old", list(StateName))
def test_a_state_leads_where_the_reference_says_and_nowhere_else(old: StateName) -> None:
    assert TRANSITIONS[old] == REFERENCE[old]


def test_every_state_has_a_row_and_a_class() -> None:
    assert set(TRANSITIONS) == set(StateName)
    assert {kind.name for kind in get_args(JobState)} == set(StateName)


def test_three_states_are_final() -> None:
    assert (
        {state for state in StateName if state.is_final} == FINAL_STATES == {S.SUCCEEDED, S.FAILED, S.DELETED}
    )


def test_a_job_id_is_a_uuid_of_version_7() -> None:
    parsed = uuid.UUID(new_job_id())

    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122


def test_job_ids_are_distinct_and_sort_by_millisecond() -> None:
    ids = [new_job_id() for _ in range(2000)]

    milliseconds = [uuid.UUID(text).int >> 80 for text in ids]
    assert len(set(ids)) == 2000
    assert milliseconds == sorted(milliseconds)


def test_a_server_id_is_its_name_and_a_uuid() -> None:
    name, _, unique = new_server_id("night").partition("#")

    assert name == "night"
    assert uuid.UUID(unique).version == 4


def test_a_job_id_is_put_into_canonical_form() -> None:
    assert check_job_id("0190D5C7A1B27C3D8E4F0123456789AB") == "0190d5c7-a1b2-7c3d-8e4f-0123456789ab"


@pytest.mark.parametrize("text", ["", "42", "no-uuid", None, 7, "0190d5c7-a1b2-7c3d-8e4f-0123456789abff"])
def test_what_is_no_job_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob, match="is not a job id"):
        check_job_id(text)
