"""Jobs chosen by what they are, in a program: `app.jobs(...)`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from qml_mp import QmlApp, StateName
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.errors import ConfigurationError
from qml_mp.storage.values import BY_DEFAULT, Fetch


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


def test_a_job_that_comes_later_is_not_meant(app: QmlApp) -> None:
    before = app.jobs()

    app.enqueue("thumb", {"n": 9})

    assert (before.count(), app.jobs().count()) == (4, 5)
    assert before.delete() == 3
    assert app.storage.job_counts()[StateName.ENQUEUED] == 1


def test_what_cannot_be_meant_is_refused(app: QmlApp) -> None:
    with pytest.raises(ConfigurationError, match="state is 'fialed'"):
        app.jobs(state="fialed")
    with pytest.raises(ConfigurationError, match="since is '1000000d'; it must be at most"):
        app.jobs(since="1000000d")
    with pytest.raises(ConfigurationError, match="no time zone"):
        app.jobs(since=datetime(2030, 1, 1))  # noqa: DTZ001
    with pytest.raises(ConfigurationError, match="since"):
        app.jobs(since="yesterday")
    with pytest.raises(ConfigurationError, match="retry changes no succeeded jobs; it is for failed"):
        app.jobs(state=["succeeded", "failed"]).retry()
