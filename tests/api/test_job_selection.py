"""Jobs chosen by what they are, in a program: `app.jobs(...)`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qml_mp import QmlApp, StateName
from qml_mp.core.outcome import ErrorInfo, Failure, Retry
from qml_mp.errors import ConfigurationError, StorageUnavailable
from qml_mp.job_selection import Batch, BulkChange
from qml_mp.storage.values import BY_DEFAULT, Fetch, JobFilter


@pytest.fixture
def app(tmp_path: Path) -> Iterator[QmlApp]:
    """With two failed jobs, one that runs and one that waits."""
    app = QmlApp(f"sqlite:///{tmp_path}/jobs.db")
    for number in range(4):
        app.enqueue("thumb", {"n": number}, queue="even" if number % 2 == 0 else "odd")
    which = Fetch(worker_id="w", server_id="s#1", queues=())
    claims = app.storage.exchange((), fetch=which, limit=3, retention=BY_DEFAULT).claims
    for claim in claims[:2]:
        error = ErrorInfo(type="ValueError", message="no")
        app.storage.finish(claim, Failure(error=error), retention=BY_DEFAULT)
    yield app
    app.close()


def test_jobs_are_counted_and_changed_by_what_they_are(app: QmlApp) -> None:
    assert app.jobs().count() == 4
    assert app.jobs(state="failed", queue="odd", since="1h").count() == 1
    assert app.jobs(state=["failed", "enqueued"], method="thumb").count() == 3
    assert app.jobs(error="valueerror", since=datetime.now().astimezone() - timedelta(hours=1)).retry() == 2
    assert app.jobs(queue="odd").delete() == 2
    assert app.jobs(queue="even").cancel(reason="not needed") == 2

    counts = app.storage.job_counts()
    assert (counts[StateName.DELETED], counts[StateName.PROCESSING]) == (3, 1)
    [request] = app.storage.cancel_requests("s#1")
    assert request.reason == "not needed"


def test_jobs_are_chosen_by_the_kind_of_their_failure_and_by_when_it_was(app: QmlApp) -> None:
    [kind] = app.storage.failure_kinds(JobFilter(), limit=9)
    assert kind.key is not None

    assert app.jobs(kind=kind.key).count() == 2
    assert app.jobs(kind="0" * 16).count() == 0
    assert app.jobs(until=timedelta(hours=1)).count() == 0
    assert app.jobs(until=datetime.now().astimezone() + timedelta(hours=1)).count() == 4


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            {"metod": "thumb"},
            "There is no filter 'metod'; there are state, queue, method, error, since, until, kind.",
        ),
        ({"method": "thumb", "states": ["failed"]}, "There is no filter 'states'; there are state, "),
    ],
)
def test_a_filter_that_is_misspelt_chooses_nothing_at_all(
    app: QmlApp, said: dict[str, Any], told: str
) -> None:
    with pytest.raises(TypeError, match=told):
        app.jobs(**said).delete()

    assert app.storage.job_counts()[StateName.DELETED] == 0


@pytest.mark.parametrize("state", ["enqueued", "processing"])
def test_a_reason_that_is_no_text_changes_nothing(app: QmlApp, state: str) -> None:
    chosen = app.jobs(state=state)
    changes = [chosen.cancel, chosen.delete] if state == "enqueued" else [chosen.cancel]

    for change in changes:
        with pytest.raises(ConfigurationError, match=r"^reason is 5; it must be text\.$"):
            change(reason=5)  # type: ignore[arg-type]
    assert chosen.count() == 1
    assert not any(job.cancel_reason for job in app.storage.list_jobs(JobFilter()).jobs)


def test_a_job_that_comes_later_is_not_meant(app: QmlApp) -> None:
    before = app.jobs()

    app.enqueue("thumb", {"n": 9})

    assert (before.count(), app.jobs().count()) == (4, 5)
    assert before.delete() == 3
    assert app.storage.job_counts()[StateName.ENQUEUED] == 1


def test_a_job_that_is_retried_while_others_are_cancelled_is_cancelled_too(app: QmlApp) -> None:
    """It runs at the look for those that wait, waits at that for those that run, and runs again then."""
    storage, which = app.storage, Fetch(worker_id="w", server_id="s#1", queues=())
    (claim,) = storage.claims()
    now = Retry(error=ErrorInfo(type="ValueError", message="no"), delay=timedelta())

    cancelling = app.jobs().for_change(BulkChange.CANCEL).in_batches(BulkChange.CANCEL, reason="not needed")
    batches = [next(cancelling)]
    storage.finish(claim, now, retention=BY_DEFAULT)
    batches += [next(cancelling)]
    assert storage.get(claim.job.id).state_name is StateName.DELETED  # type: ignore[union-attr]
    batches += cancelling

    assert sum(batch.changed for batch in batches) == 2
    assert storage.fetch_and_lock_job(which) is None


def test_of_a_job_that_has_begun_again_since_the_look_the_server_is_asked_once(app: QmlApp) -> None:
    storage, which = app.storage, Fetch(worker_id="w", server_id="s#1", queues=())
    asked = []

    def see_to(job_id: str) -> None:
        asked.append(job_id)
        if len(asked) == 1:
            storage.retry_many([failed], until=before)
            assert storage.fetch_and_lock_job(which) is not None

    before = storage.now()
    failed = storage.job_ids(JobFilter(states=[StateName.FAILED]), until=before).ids[0]
    selection = app.jobs().for_change(BulkChange.CANCEL)
    batches = list(selection.in_batches(BulkChange.CANCEL, reason="not needed", running=see_to))

    assert asked[1:] == [failed]
    assert sum(batch.changed for batch in batches) == 3


def test_what_cannot_be_meant_is_refused(app: QmlApp) -> None:
    with pytest.raises(ConfigurationError, match="state is 'fialed'"):
        app.jobs(state="fialed")
    with pytest.raises(ConfigurationError, match="since is '1000000d'; it must be at most"):
        app.jobs(since="1000000d")
    with pytest.raises(ConfigurationError, match="no time zone"):
        app.jobs(since=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match=r'or "1h30m"\. An instant is given as an aware datetime\.$'):
        app.jobs(since="2026-01-31T09:00")
    with pytest.raises(ConfigurationError, match=r"until is .* given as an aware datetime"):
        app.jobs(until=date(2030, 1, 31))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="since"):
        app.jobs(since="yesterday")
    with pytest.raises(ConfigurationError, match="until is '203011', which may be a date or seconds: write"):
        app.jobs(until="203011")
    with pytest.raises(ConfigurationError, match="until is 'tomorrow'"):
        app.jobs(until="tomorrow")
    with pytest.raises(ConfigurationError, match="state is empty"):
        app.jobs(state=[])
    with pytest.raises(ConfigurationError, match="error is empty"):
        app.jobs(method="thumb", error="")
    with pytest.raises(ConfigurationError, match=r"method is \['thumb'\]; it must be text."):
        app.jobs(method=["thumb"])  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="retry changes no succeeded jobs; it is for failed"):
        app.jobs(state=["succeeded", "failed"]).retry()


def test_what_was_done_of_running_jobs_before_an_error_is_told(app: QmlApp) -> None:
    which = Fetch(worker_id="w", server_id="s#1", queues=())
    app.storage.exchange((), fetch=which, limit=9, retention=BY_DEFAULT)  # the fourth of them runs, too
    seen: list[str] = []

    def see_to(job_id: str) -> None:
        seen.append(job_id)
        if len(seen) == 2:
            raise StorageUnavailable("gone")

    running = app.jobs(state="processing").for_change(BulkChange.CANCEL, running=True)
    batches = running.in_batches(BulkChange.CANCEL, reason="no", running=see_to)

    assert next(batches) == Batch(changed=1)
    with pytest.raises(StorageUnavailable):
        next(batches)
