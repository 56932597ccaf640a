"""The overview: what it counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from html import unescape

import pytest

from qml_mp import host
from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.server_info import ProcessIdentity, ServerInfo, WorkerInfo
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.web import dashboard
from tests.storage.helpers import KEEP, claim_new, fetch
from tests.web.asgi import Visitor

GONE = replace(host.identity(), started_ticks=1)


@pytest.fixture
def opened(file_url: str) -> Iterator[Storage]:
    """A storage of the test's own."""
    with closing(open_storage(file_url)) as storage:
        yield storage


def overview(storage: Storage) -> str:
    """What a person reads there."""
    response = Visitor(dashboard(storage)).get("/")
    assert response.status_code == 200, response.text
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", response.text)).split())


def serve(storage: Storage, name: str, process: ProcessIdentity) -> None:
    """A server in that process, with one worker, which runs a job whose method is called like the server."""
    now, server, worker = datetime.now(UTC), f"{name}#1", f"{name}#1:worker:1.1"
    storage.register_server(
        ServerInfo(
            id=server, name=name, hostname="here", process=process, worker_count=1, queues=(name,),
            started_at=now, last_heartbeat=now,
        )
    )  # fmt: skip
    storage.register_worker(
        WorkerInfo(id=worker, server_id=server, number=1, process=process, started_at=now)
    )
    storage.enqueue(Job.new(f"run-by-{name}", queue=name))
    assert storage.fetch_and_lock_job(fetch(name, worker=worker, server=server))


def test_workers_of_a_dead_server_are_none(opened: Storage) -> None:
    serve(opened, "blue", host.identity())
    serve(opened, "green", GONE)

    shown = overview(opened)

    assert "Server green (pid" in shown
    assert "1 of 1 worker busy" in shown
    assert "run-by-blue" in shown
    assert "run-by-green" not in shown


def fail(storage: Storage, kind: str) -> None:
    claim = claim_new(storage)
    storage.finish(claim, Failure(error=ErrorInfo(type=kind, message="no", traceback=None)), retention=KEEP)


def test_the_newest_failure_is_shown_among_any_number_of_kinds(opened: Storage) -> None:
    for number in range(50):
        for _ in range(2):
            fail(opened, f"Old{number}")
    fail(opened, "BrandNew")

    shown = overview(opened)

    newest = [shown.index(kind) for kind in ("BrandNew", "Old49", "Old48", "Old47", "Old46", "Old45")]
    assert newest == sorted(newest)
    assert "Old44" not in shown


@pytest.mark.parametrize(
    ("jobs", "told"),
    [(150, "and 150 jobs wait."), (1000, "and 1000 jobs wait."), (1002, "and at least 1001 jobs")],
)
def test_a_paused_queue_is_told_with_how_many_jobs_wait_in_it(opened: Storage, jobs: int, told: str) -> None:
    opened.enqueue_many(Job.new("resize", queue="images") for _ in range(jobs))
    opened.set_paused("images", True)

    assert f"Queue images is paused, {told}" in overview(opened)


@pytest.mark.parametrize(("jobs", "told"), [(999, ""), (1000, "at least ")])
def test_the_oldest_job_of_those_that_were_looked_at_alone_is_told_as_such(
    opened: Storage, jobs: int, told: str
) -> None:
    opened.enqueue_many(Job.new("resize", queue="images") for _ in range(jobs))
    visitor = Visitor(dashboard(opened))

    for screen in ("/", "/queues"):
        page = visitor.get(screen).text
        assert re.search(rf'data-label="Oldest waits">{told}\d', page)
