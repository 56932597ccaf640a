"""Tests: the dashboard tells of recent failures and of served queues, and its filters say what they do."""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime, timedelta
from html import unescape

import httpx
import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure, Retry
from qml_mp.core.server_info import ServerInfo
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.web import dashboard
from tests.storage.helpers import KEEP, claim_new
from tests.web.asgi import Visitor

ERROR = ErrorInfo(type="Broken", message="no", traceback=None)
FINE = "Nothing is wrong."


def text_of(response: httpx.Response) -> str:
    """What a person reads there."""
    assert response.status_code == 200, response.text
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", response.text)).split())


def test_the_overview_tells_how_many_jobs_failed_within_the_hour_and_leads_to_them(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FINE in text_of(Visitor(dashboard(storage)).get("/"))

    failed = [claim_new(storage) for _ in range(3)]
    for claim in failed:
        storage.finish(claim, Failure(error=ERROR), retention=KEEP)
    storage.finish(claim_new(storage), Retry(error=ERROR, delay=timedelta(hours=1)), retention=KEEP)

    visitor = Visitor(dashboard(storage))
    overview = visitor.get("/")
    assert FINE not in text_of(overview)
    link = re.search(r'<a href="([^"]+)">3 jobs failed for good in the last hour\.</a>', overview.text)
    assert link is not None, text_of(overview)
    listed = re.findall(r'<a href="/jobs/([^"]+)">work</a>', visitor.get(unescape(link[1])).text)
    assert sorted(listed) == sorted(claim.job.id for claim in failed)

    now = storage.now
    monkeypatch.setattr(storage, "now", lambda: now() + timedelta(minutes=61))
    assert FINE in text_of(Visitor(dashboard(storage)).get("/"))


def test_a_queue_that_is_served_and_holds_no_job_is_listed(file_url: str) -> None:
    now = datetime.now(UTC)
    with closing(open_storage(file_url)) as storage:
        storage.register_server(
            ServerInfo(
                id="blue#1", name="blue", hostname="here", process=host.identity(), worker_count=1,
                queues=("images",), started_at=now, last_heartbeat=now,
            )
        )  # fmt: skip
        visitor = Visitor(dashboard(storage))

        for screen in ("/", "/queues"):
            assert re.search(r'<th scope="row">(<a [^>]+>)?images\b', visitor.get(screen).text), screen


def test_filters_say_what_they_do(file_url: str) -> None:
    with closing(open_storage(file_url)) as storage:
        storage.enqueue(Job.new("resize"))
        visitor = Visitor(dashboard(storage))

        jobs, errors = visitor.get("/jobs?error=disk"), visitor.get("/errors")

    assert "<button>Filter</button>" in jobs.text
    assert "<button>Filter</button>" in errors.text
    for words in ("Error contains", "selected jobs", 'all jobs whose error contains "disk"'):
        assert words.replace('"', "'") in text_of(jobs).replace('"', "'")
