"""Tests: what the forms of the screens change, on either backend. Their looks: test_journeys.py."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from qml_mp.core.job import Job
from qml_mp.core.limits import Limit, LimitKind, Rate
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import Deleted, StateName
from qml_mp.storage.store import Storage
from tests.storage.helpers import present, set_limit
from tests.web.serving import Served, token_of


@pytest.fixture
def visitor(page: Served) -> Iterator[httpx.Client]:
    with page.visitor() as visitor:
        yield visitor


def send(visitor: httpx.Client, path: str, screen: str, **fields: str) -> httpx.Response:
    """The form, as the screen has it."""
    token = token_of(visitor.get(screen).text)
    return visitor.post(path, data={**fields, "page_token": token})


def limits_of(storage: Storage, queue: str) -> tuple[int | None, Rate | None, bool]:
    [limit] = [each.limit for each in storage.standings() if each.limit.name == queue]
    return limit.max_running, limit.rate, limit.paused


def test_a_queue_is_limited_paused_resumed_and_free_again(visitor: httpx.Client, storage: Storage) -> None:
    def stands() -> tuple[int | None, Rate | None, bool]:
        return limits_of(storage, "images")

    send(visitor, "/queues/limit", "/queues", name="images", max_running="3", rate="100/m")
    assert stands() == (3, Rate.parse("100/m"), False)
    send(visitor, "/queues/pause", "/queues", name="images")
    assert stands() == (3, Rate.parse("100/m"), True)
    assert "images" in visitor.get("/queues").text
    send(visitor, "/queues/resume", "/queues", name="images")
    send(visitor, "/queues/limit", "/queues", name="images", max_running="", rate="")

    assert [each for each in storage.standings() if each.limit.name == "images"] == []


def test_a_limit_that_was_left_as_it_was_shown_is_as_somebody_else_has_set_it_since(
    visitor: httpx.Client, storage: Storage
) -> None:
    storage.limit(Limit(kind=LimitKind.QUEUE, name="mail", max_running=10, rate=Rate.parse("50/s")))
    shown = visitor.get("/queues").text
    form = re.search(r'action="/queues/limit">((?:(?!</form>).)*value="mail".*?)</form>', shown, re.DOTALL)
    assert form is not None
    fields = dict(re.findall(r'name="([^"]+)"[^>]* value="([^"]*)"', form[1]))

    set_limit(storage, LimitKind.QUEUE, "mail", rate=Rate.parse("5/s"))
    set_one = visitor.post("/queues/limit", data={**fields, "max_running": "20"})
    after_one = limits_of(storage, "mail")
    visitor.post("/queues/limit", data={**fields, "rate": ""})

    assert set_one.status_code == 303
    assert after_one == (20, Rate.parse("5/s"), False)
    assert limits_of(storage, "mail") == (20, None, False)
    assert [act.said for act in storage.list_acts(limit=2).acts] == ["20 running", "20 running, 5/s"]
    storage.limit(Limit(kind=LimitKind.QUEUE, name="mail"))


def test_a_queue_that_another_program_has_named_is_resumed_when_it_is_empty(
    visitor: httpx.Client, storage: Storage
) -> None:
    storage.set_paused("Bilder und Videos", True)
    shown = visitor.get("/queues").text

    resumed = send(visitor, "/queues/resume", "/queues", name="Bilder und Videos")

    assert "Resume Bilder und Videos" in shown
    assert resumed.status_code == 303
    assert storage.standings() == []


@pytest.mark.parametrize(
    ("max_running", "rate", "told"),
    [
        ("many", "", "give a whole number from 1"),
        ("0", "", "max_running is 0"),
        ("9" * 5000, "", "is no number"),
        ("", "100/fortnight", "100/m"),
    ],
    ids=["word", "zero", "thousands of digits", "rate"],
)
def test_a_limit_that_cannot_be_is_refused_with_what_to_do(
    visitor: httpx.Client, storage: Storage, max_running: str, rate: str, told: str
) -> None:
    refused = send(visitor, "/queues/limit", "/queues", name="images", max_running=max_running, rate=rate)

    assert refused.status_code == 400
    assert told in refused.text
    assert storage.standings() == []


def test_a_template_is_turned_off_and_on_run_and_removed(visitor: httpx.Client, storage: Storage) -> None:
    nightly = RecurringJob.new("nightly", "0 2 * * *", "clean", tz="Europe/Berlin", priority=9)
    storage.upsert_recurring_job(nightly)

    send(visitor, "/recurring/disable", "/recurring", id="nightly")
    off = storage.get_recurring_job("nightly")
    send(visitor, "/recurring/enable", "/recurring", id="nightly")
    send(visitor, "/recurring/run", "/recurring", id="nightly")
    ran = storage.get_recurring_job("nightly")
    shown = visitor.get("/recurring?text=night").text, visitor.get("/recurring?text=weekly").text
    one = visitor.get("/recurring/template?id=nightly").text
    send(visitor, "/recurring/remove", "/recurring", id="nightly")

    assert off is not None
    assert not off.enabled
    assert ran is not None
    assert ran.enabled
    assert ran.last_job_id is not None
    job = storage.get(ran.last_job_id)
    assert job is not None
    assert job.state_name is StateName.ENQUEUED
    assert "default, priority 9" in one
    assert ["Run nightly now" in each for each in shown] == [True, False]
    assert storage.get_recurring_job("nightly") is None


def test_a_job_keeps_by_whom_it_was_cancelled_whatever_screen_that_was_on(
    visitor: httpx.Client, storage: Storage
) -> None:
    ids = [storage.enqueue(Job.new("work")) for _ in range(2)]

    send(visitor, f"/jobs/{ids[0]}/cancel", "/jobs")
    send(visitor, "/servers/cancel", "/servers", job_id=ids[1])

    [act] = storage.list_acts(limit=1).acts
    states = [present(storage, job_id).state for job_id in ids]
    assert [state.reason for state in states if isinstance(state, Deleted)] == [
        f"cancelled on the page by {act.by.who}"
    ] * 2
    assert "cancel job" in visitor.get(f"/audit/{act.id}").text
    missing = visitor.get("/audit/none")
    assert (missing.status_code, "deleted with the old ones" in missing.text) == (404, True)
