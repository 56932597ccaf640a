"""The screens of jobs: many retried together, and jobs that run cancelled by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, expect

from qml_mp.core.job import Job
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch, JobFilter
from tests.browser.conftest import ONE_BACKEND, Site, window_elsewhere
from tests.browser.watching import Watched
from tests.processes.harness import Server, enqueue, wait_for_state

MANY = 500
NO = ErrorInfo(type="ValueError", message="no")


@pytest.fixture(scope="module")
def server(servers: Callable[..., Server]) -> Server:
    """One that runs, and soon kills what does not end when it is asked to."""
    return servers("-w", "2", QML_MP_CANCEL_GRACE="0.2", QML_MP_TERM_GRACE="0.2").start(ready=2)


def test_five_hundred_failed_jobs_are_retried_together(page: Watched, site: Site) -> None:
    fail_many(site.storage, "nobody-has-this")
    shown = page.page
    page.open("/jobs?state=failed&method=nobody-has-this")

    shown.get_by_role("radio").nth(1).check()
    shown.get_by_role("button", name="Retry…").click()
    shown.get_by_label("Type how many").fill(str(MANY))
    shown.get_by_role("button", name="Retry", exact=True).click()

    expect(shown.get_by_role("status")).to_contain_text("500 jobs")
    retried = [StateName.ENQUEUED, StateName.FAILED]
    counts = [count(site.storage, state) for state in retried]
    assert counts == [MANY, 0]


def test_a_number_that_is_not_how_many_are_meant_changes_nothing(page: Watched, site: Site) -> None:
    fail_many(site.storage, "other", count=3)
    page.expected = ["409"]
    page.open("/jobs/change?change=retry&which=all&state=failed&method=other")

    page.page.get_by_label("Type how many").fill("4")
    page.page.get_by_role("button", name="Retry", exact=True).click()

    expect(page.page.get_by_role("alert").filter(has_text="has changed nothing")).to_be_visible()
    assert count(site.storage, StateName.FAILED, method="other") == 3


@ONE_BACKEND
def test_a_time_that_is_typed_is_of_the_zone_in_which_times_are_shown(browser: Browser, site: Site) -> None:
    created_at = datetime(2030, 1, 31, 9, tzinfo=UTC)
    job_id = site.storage.enqueue(Job.new("early", now=created_at))
    with window_elsewhere(browser, zone="Asia/Kolkata") as shown:
        shown.goto(f"{site.origin}/jobs/{job_id}")
        there = shown.locator("time[data-instant]").filter(has_text="2030").first.inner_text()
        shown.goto(f"{site.origin}/jobs")

        shown.get_by_label("Until", exact=True).fill(there)
        shown.get_by_role("button", name="Filter").click()

        expect(shown.get_by_label("Until", exact=True)).to_have_value("2030-01-31T14:30:00+05:30")
        expect(shown.locator("#choice")).to_contain_text("all jobs until 2030-01-31T14:30:00+05:30")


@ONE_BACKEND
@pytest.mark.parametrize("ahead_h", [-3, 3])
def test_how_long_ago_something_was_is_told_whatever_the_browsers_clock(
    ahead_h: int, browser: Browser, site: Site
) -> None:
    method, two_hours_ago = f"made-{ahead_h}", site.storage.now() - timedelta(hours=2)
    site.storage.enqueue(Job.new(method, now=two_hours_ago))
    clock = f"const own = Date.now; Date.now = () => own() + {ahead_h * 3_600_000}"
    with window_elsewhere(browser, script=clock) as shown:
        shown.goto(f"{site.origin}/jobs?method={method}")

        expect(shown.locator("td[data-label=Created]")).to_have_text(re.compile(r"^2 h( \d+ min)? ago$"))


@pytest.mark.parametrize("method", ["nap", "nap_with_the_lock"])
def test_a_job_that_runs_is_cancelled_also_one_that_holds_the_interpreter_lock(
    method: str, page: Watched, site: Site, server: Server
) -> None:
    job_id = enqueue(site.storage, method, seconds=600)
    wait_for_state(site.storage, job_id, StateName.PROCESSING)
    page.open(f"/jobs/{job_id}")
    page.page.evaluate("window.stays = true")
    page.agreed = ["Cancel this job?"]

    page.page.get_by_role("button", name="Cancel", exact=True).click()

    expect(page.page.locator("#job_head .state")).to_have_text("deleted")
    assert wait_for_state(site.storage, job_id, StateName.DELETED)


def fail_many(storage: Storage, method: str, *, count: int = MANY) -> None:
    """So many jobs that have failed."""
    storage.enqueue_many(Job.new(method, queue=method) for _ in range(count))
    fetch = Fetch(worker_id="worker", server_id="server", queues=(method,))
    claims = storage.exchange((), fetch=fetch, limit=count, retention=BY_DEFAULT).claims
    failed = [(claim, Failure(error=NO)) for claim in claims]
    storage.exchange(failed, fetch=None, limit=0, retention=BY_DEFAULT)
    assert len(claims) == count


def count(storage: Storage, state: StateName, *, method: str = "nobody-has-this") -> int:
    """How many there are."""
    return len(storage.list_jobs(JobFilter(states=[state], method=method), limit=1000).jobs)
