"""Tests: a change of many jobs on the page that is broken off, and one whose note is refused."""

from __future__ import annotations

import re
import signal
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest

from qml_mp.core.acts import ActState
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from qml_mp.web import dashboard
from tests import failpoints
from tests.storage.helpers import in_children
from tests.web.asgi import Visitor
from tests.web.serving import token_of

_BATCH = 500


def refuse(what: str, *, file: Path) -> None:
    """By a trigger, as a user may have one."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE {what} BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )


def two_batches(storage: Storage, method: str) -> list[str]:
    """Ids of waiting jobs."""
    return storage.enqueue_many(Job.new(method) for _ in range(_BATCH + 1))


def delete_all(storage: Storage, method: str) -> httpx.Response:
    """The answer of the page to who wants all these jobs deleted."""
    visitor = Visitor(dashboard(storage))
    question = visitor.get(f"/jobs/change?change=delete&which=all&method={method}").text
    found = re.search(r'name="at" value="([^"]+)"', question)
    assert found is not None
    return visitor.post(
        "/jobs/change",
        data={
            "change": "delete", "which": "all", "method": method, "at": found[1], "typed": str(_BATCH + 1),
            "page_token": token_of(question),
        },
    )  # fmt: skip


def test_what_was_done_before_is_in_the_audit(file_url: str, tmp_path: Path) -> None:
    with closing(open_storage(file_url)) as storage:
        ids = two_batches(storage, "thumb")
        refuse(f"UPDATE ON qml_jobs WHEN OLD.id = '{max(ids)}'", file=tmp_path / "jobs.db")

        answer = delete_all(storage, "thumb")

        assert answer.status_code == 503
        assert storage.job_counts()[StateName.DELETED] == _BATCH
        act = storage.list_acts(limit=1).acts[0]
        assert (act.what, act.subject) == ("delete jobs", "all jobs of the method thumb")
        assert act.state is ActState.UNFINISHED
        assert act.said == f"Broken off by an error: {_BATCH} of {_BATCH + 1} deleted before it."


def test_what_was_changed_when_the_process_was_killed_is_in_the_audit_whichever_commit_was_its_last(
    file_url: str,
) -> None:
    def delete_and_die(method: str, commit: int) -> None:
        failpoints.arm(f"storage.committed=kill:{commit}")
        with closing(open_storage(file_url)) as storage:
            delete_all(storage, method)

    found = set()
    for commit in range(1, 100):
        method = f"thumb{commit}"
        with closing(open_storage(file_url)) as storage:
            two_batches(storage, method)
        [status] = in_children([partial(delete_and_die, method, commit)])
        with closing(open_storage(file_url)) as storage:
            acts = [act for act in storage.list_acts().acts if act.subject.endswith(f" {method}")]
            deleted = JobFilter(method=method, states=[StateName.DELETED])
            changed = sum(storage.count_jobs(deleted, until=storage.now()).values())
        found.add((changed, *(act.state for act in acts)))
        if status != signal.SIGKILL:  # it has come to its end, or failed
            break

    assert status == 0
    assert found == {
        (0,), (0, ActState.UNFINISHED), (_BATCH, ActState.UNFINISHED), (_BATCH + 1, ActState.UNFINISHED),
        (_BATCH + 1, ActState.DONE),
    }  # fmt: skip


def test_a_limit_that_is_set_is_in_the_audit_or_the_log_whenever_the_storage_goes_away(
    file_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = set()
    with closing(open_storage(file_url)) as storage:
        for operation in range(1, 100):
            name = f"images{operation}"
            storage.enqueue(Job.new("thumb", queue=name))
            visitor = Visitor(dashboard(storage))
            token = token_of(visitor.get("/queues").text)

            failpoints.arm(f"storage.call=raise:{operation}")
            try:
                answer = visitor.post(
                    "/queues/limit", data={"name": name, "max_running": "3", "rate": "", "page_token": token}
                )
            finally:
                failpoints.arm("")

            is_set = name in [each.limit.name for each in storage.standings()]
            said = [act.said for act in storage.list_acts().acts if act.subject == name]
            is_logged = f"This stands in no audit: limit queue {name} by " in caplog.text
            found.add((answer.status_code, is_set, *said, is_logged))
            if said:
                break

    assert found == {(503, False, False), (303, True, True), (303, True, "3 running", False)}


def test_a_change_stands_whose_note_is_refused_and_the_log_has_it(
    file_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_storage(file_url)) as storage:
        storage.enqueue(Job.new("thumb", {}, queue="images"))
        refuse("INSERT ON qml_acts", file=tmp_path / "jobs.db")
        visitor = Visitor(dashboard(storage))
        token = token_of(visitor.get("/queues").text)

        answer = visitor.post("/queues/pause", data={"name": "images", "page_token": token})

        assert answer.status_code == 303
        assert [each.limit.name for each in storage.standings() if each.limit.paused] == ["images"]
        assert storage.list_acts(limit=1).acts == ()
    assert "This stands in no audit: pause queue images by " in caplog.text
