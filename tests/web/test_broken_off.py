"""Tests: a change of many jobs on the page that an error breaks off, and one whose note is refused."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.web import dashboard
from tests.web.asgi import Visitor
from tests.web.serving import token_of

_BATCH = 500


def refuse(what: str, *, file: Path) -> None:
    """By a trigger, as a user may have one."""
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            f"CREATE TRIGGER refuse BEFORE {what} BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )


def test_what_was_done_before_is_in_the_audit(file_url: str, tmp_path: Path) -> None:
    with closing(open_storage(file_url)) as storage:
        ids = storage.enqueue_many(Job.new("thumb", {"n": n}) for n in range(_BATCH + 1))
        refuse(f"UPDATE ON qml_jobs WHEN OLD.id = '{max(ids)}'", file=tmp_path / "jobs.db")
        visitor = Visitor(dashboard(storage))
        question = visitor.get("/jobs/change?change=delete&which=all&method=thumb").text
        found = re.search(r'name="at" value="([^"]+)"', question)
        assert found is not None

        answer = visitor.post(
            "/jobs/change",
            data={
                "change": "delete", "which": "all", "method": "thumb", "at": found[1], "typed": str(len(ids)),
                "page_token": token_of(question),
            },
        )  # fmt: skip

        assert answer.status_code == 503
        assert storage.job_counts()[StateName.DELETED] == _BATCH
        act = storage.list_acts(limit=1).acts[0]
        assert (act.what, act.subject) == ("delete jobs", "all jobs of the method thumb")
        assert act.said == f"Broken off by an error: {_BATCH} of {_BATCH + 1} deleted before it."


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
