"""Tests: what a producer sees of a job, on a real SQLite storage."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from qml_mp import (
    JobFailed,
    JobNotFound,
    QmlApp,
    StateName,
    WaitTimeout,
)
from qml_mp.core.outcome import ErrorInfo, Failure, Success
from qml_mp.errors import ConfigurationError, InvalidJob, InvalidTransition
from qml_mp.storage.values import CancelResult
from tests.api.app_case import begin, finish, resize


def test_waiting_returns_the_result(app: QmlApp) -> None:
    handle = app.job()(resize).enqueue("a")
    finish(app, Success(result={"width": 3}, duration=timedelta(seconds=1)))

    assert handle.wait(timeout=30) == {"width": 3}
    assert handle.result == {"width": 3}
    assert handle.state is StateName.SUCCEEDED


def test_waiting_for_a_job_that_fails_tells_why(app: QmlApp) -> None:
    handle = app.job()(resize).enqueue("a")
    finish(app, Failure(error=ErrorInfo(type="ValueError", message="bad width")))

    with pytest.raises(JobFailed, match="ValueError: bad width") as caught:
        handle.wait()

    assert (caught.value.job_id, caught.value.state) == (handle.id, "failed")
    assert handle.result is None


def test_waiting_ends_when_the_time_is_over_and_the_job_goes_on(app: QmlApp) -> None:
    handle = app.job()(resize).enqueue("a")

    with pytest.raises(WaitTimeout, match="still enqueued"):
        handle.wait(timeout=0)

    assert handle.state is StateName.ENQUEUED


def test_whether_a_server_serves_the_queue_is_asked_of_a_job_that_waits_in_it(app: QmlApp) -> None:
    handle, later = app.job()(resize).enqueue("a"), app.enqueue("resize", {"path": "b"}, delay="1h")

    with pytest.raises(WaitTimeout, match="Does a server serve the queue 'default'"):
        handle.wait(timeout=0)
    begin(app)

    for each, state in ((handle, "processing"), (later, "scheduled")):
        with pytest.raises(WaitTimeout, match=rf"still {state} after .*; it goes on\.$"):
            each.wait(timeout=0)


def test_a_cancelled_job_is_deleted_and_its_waiter_is_told(app: QmlApp) -> None:
    handle = app.job()(resize).enqueue("a")

    assert handle.cancel(reason="not needed") is CancelResult.DELETED
    assert handle.cancel() is CancelResult.ALREADY_FINAL
    with pytest.raises(JobFailed, match="was deleted: not needed"):
        handle.wait()


def test_a_reason_that_is_no_text_cancels_nothing(app: QmlApp) -> None:
    handle = app.job()(resize).enqueue("a")

    with pytest.raises(ConfigurationError, match=r"^reason is 5; it must be text\.$"):
        handle.cancel(reason=5)  # type: ignore[arg-type]
    assert handle.state is StateName.ENQUEUED


def test_a_failed_job_is_enqueued_again_by_hand(app: QmlApp) -> None:
    handle = app.job()(resize).enqueue("a")
    finish(app, Failure(error=ErrorInfo(type="ValueError", message="bad width")))

    handle.retry()

    assert handle.state is StateName.ENQUEUED
    with pytest.raises(InvalidTransition):
        handle.retry()


def test_a_handle_is_made_of_an_id_in_any_form(app: QmlApp) -> None:
    function = app.job()(resize)
    handle = function.enqueue("a")

    for text in (UUID(handle.id), handle.id.upper(), UUID(handle.id).hex):
        assert app.handle(text) == function.handle(text) == handle
        assert app.handle(text).id == handle.id
        assert function.handle(text).state is StateName.ENQUEUED


@pytest.mark.parametrize("what", [7, None, ["a"]])
def test_what_is_neither_an_id_nor_text_is_refused_at_once(app: QmlApp, what: Any) -> None:
    function = app.job()(resize)

    for handle_of in (app.handle, function.handle):
        with pytest.raises(InvalidJob, match="is not a job id"):
            handle_of(what)


@pytest.mark.parametrize("text", ["no id", ""])
def test_no_job_has_text_that_is_no_id_as_its_id(app: QmlApp, text: str) -> None:
    handle = app.handle(text)

    for ask in (handle.job, handle.wait):
        with pytest.raises(JobNotFound, match="is not a job id"):
            ask()


def test_a_job_that_does_not_exist_is_not_found(app: QmlApp) -> None:
    handle = app.handle("0190d5c7-a1b2-7c3d-8e4f-0123456789ab")

    for ask in (handle.job, handle.wait, handle.cancel, handle.retry):
        with pytest.raises(JobNotFound):
            ask()
