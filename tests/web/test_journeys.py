"""Journeys in a real Chromium: what only a browser can show. All else about the page is shown over HTTP."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from qml_mp.core.job import Job
from qml_mp.core.limits import LimitKind, Rate
from qml_mp.core.outcome import ErrorInfo, Failure
from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.storage.values import BY_DEFAULT, Fetch, JobFilter
from tests.failpoints import LEAVES_PATIENTLY
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until
from tests.storage.helpers import patient_url
from tests.web import everyday, hostile
from tests.web.screens import SCREENS
from tests.web.serving import Served, served
from tests.web.watching import (
    PATIENCE_MS,
    PHONE,
    TELLS_VIOLATIONS,
    THEMES,
    WIDE,
    Watched,
    started_browser,
    watching,
)

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("journeys")]
PICTURE = "QML_MP_TEST_PICTURE"
"""Where the picture for the README is written; `scripts/picture` sets it."""
MOST_PICTURE_BYTES = 150_000
TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all journeys: it takes longer to start than most of them."""
    expect.set_options(timeout=PATIENCE_MS)
    with started_browser() as browser:
        yield browser


@pytest.fixture
def storage(file_url: str) -> Iterator[Storage]:
    with closing(open_storage(patient_url(file_url))) as storage:
        yield storage


@pytest.fixture
def page(file_url: str, tmp_path: Path) -> Iterator[Served]:
    with served(file_url, tmp_path) as page:
        yield page


@pytest.fixture
def plain(browser: Browser) -> Iterator[Page]:
    """A tab in a fresh window."""
    with browser.new_context(viewport=WIDE, reduced_motion="reduce", locale="en-GB") as context:
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(TELLS_VIOLATIONS)
        yield context.new_page()


@pytest.fixture
def tab(plain: Page, page: Served) -> Iterator[Watched]:
    """The tab on the page. The test fails at its end if anything went wrong in it."""
    with watching(plain, page.origin, log=page.log) as watched:
        yield watched
        watched.check()
    plain.goto("about:blank")  # nothing is requested any more when the server ends


# It looks at every screen in two sizes and themes, and axe takes most of the time.
def test_every_screen_can_be_used_by_all_and_fits_a_phone(tab: Watched, storage: Storage) -> None:
    failed, running, _ = everyday.fill(storage)
    others = [f"/jobs/{failed}", f"/jobs/{running}", "/recurring/template?id=nightly-report"]

    for size, theme in zip((WIDE, PHONE), THEMES, strict=True):
        tab.page.set_viewport_size(size)
        tab.page.emulate_media(color_scheme=theme)
        for path in [*SCREENS, *others]:
            tab.open(path)
            headings = tab.page.get_by_role("heading", level=1).count()
            assert (path, headings, tab.overflow(), tab.barriers()) == (path, 1, [], [])
            tab.pictures(f"{re.sub(r'[^a-z]+', '-', path).strip('-') or 'overview'}-{size['width']}")


# It opens every screen with forty of everything.
def test_no_stored_text_runs_as_a_script_or_sticks_out(tab: Watched, storage: Storage) -> None:
    hostile.fill(storage)
    jobs = storage.list_jobs(JobFilter(states=[StateName.FAILED]), limit=3).jobs
    tab.page.set_viewport_size(PHONE)

    for path in [*SCREENS, *(f"/jobs/{job.id}" for job in jobs)]:
        tab.open(path)
        tab.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        assert (path, tab.overflow()) == (path, [])
        tab.check()

    text = hostile.TEXTS[4]
    tab.open("/queues")
    tab.page.get_by_role("button", name=f"Pause {text}", exact=True).click()
    expect(tab.page.get_by_role("button", name=f"Resume {text}", exact=True)).to_be_visible()
    assert [each.limit.name for each in storage.standings() if each.limit.paused] == [text]


def test_a_screen_follows_what_happens_also_after_it_was_hidden(
    tab: Watched, storage: Storage, file_url: str, tmp_path: Path
) -> None:
    succeeded = tab.page.locator(".figure").filter(has_text="succeeded").locator(".value").first
    tab.open("/")
    tab.page.evaluate("window.stays = true")

    with running_server(file_url, tmp_path, "-w", "1"):
        storage.enqueue(Job.new("quick", {}))
        expect(succeeded).to_have_text("1")

        hide(tab, True)
        wait_for_state(storage, storage.enqueue(Job.new("quick", {})), StateName.SUCCEEDED)
        hide(tab, False)
        expect(succeeded).to_have_text("2")

    assert tab.page.evaluate("window.stays") is True  # it was not loaded again


def test_five_hundred_failed_jobs_are_retried_together(tab: Watched, storage: Storage) -> None:
    fail_many(storage, "nobody-has-this", count=500)
    tab.open("/jobs?state=failed&method=nobody-has-this")

    tab.page.get_by_role("radio").nth(1).check()
    tab.page.get_by_role("button", name="Retry…").click()
    tab.page.get_by_label("Type how many").fill("500")
    tab.page.get_by_role("button", name="Retry", exact=True).click()

    expect(tab.page.get_by_role("status")).to_contain_text("500 jobs")
    counts = storage.job_counts()
    assert [counts[state] for state in (StateName.ENQUEUED, StateName.FAILED)] == [500, 0]


@pytest.mark.parametrize("ahead_h", [-3, 3])
def test_times_are_those_of_the_persons_zone_whatever_the_clock_says(
    ahead_h: int, browser: Browser, page: Served, storage: Storage
) -> None:
    early = storage.enqueue(Job.new("early", now=datetime(2030, 1, 31, 9, tzinfo=UTC)))
    storage.enqueue(Job.new("late", now=storage.now() - timedelta(hours=2)))
    with browser.new_context(timezone_id="Asia/Kolkata", reduced_motion="reduce") as context:
        context.add_init_script(f"const own = Date.now; Date.now = () => own() + {ahead_h * 3_600_000}")
        shown = context.new_page()

        shown.goto(f"{page.origin}/jobs?method=late")
        expect(shown.locator("td[data-label=Created]")).to_have_text(re.compile(r"^2 h( \d+ min)? ago$"))

        shown.goto(f"{page.origin}/jobs/{early}")
        there = shown.locator("time[data-instant]").filter(has_text="2030").first.inner_text()
        shown.goto(f"{page.origin}/jobs")
        until = shown.locator("[name=until]").first
        until.fill(there)
        until.press("Enter")
        expect(shown.locator("#choice")).to_contain_text("all jobs until 2030-01-31T14:30:00+05:30")
        shown.goto("about:blank")


def test_a_running_job_is_cancelled(tab: Watched, storage: Storage, file_url: str, tmp_path: Path) -> None:
    with running_server(file_url, tmp_path, "-w", "1"):
        job_id = enqueue(storage, "nap", seconds=600)
        wait_for_state(storage, job_id, StateName.PROCESSING)
        tab.open(f"/jobs/{job_id}")
        tab.agreed = ["Cancel this job?"]

        tab.page.get_by_role("button", name="Cancel", exact=True).click()

        expect(tab.page.locator("#job_head .state")).to_have_text("deleted")


def test_a_queue_is_paused_and_limited_while_its_row_changes(tab: Watched, storage: Storage) -> None:
    for queue in ("images", "video"):
        storage.enqueue(Job.new("nobody-has-this", queue=queue))
    shown, row = tab.page, row_of(tab, "video")
    tab.open("/queues")

    shown.get_by_role("button", name="Pause images").click()
    expect(shown.get_by_role("status")).to_have_text("images is paused. Jobs of it that run go on.")
    expect(row_of(tab, "images")).to_contain_text("paused")

    row.locator("summary").click()
    row.get_by_label("Running at most").fill("3")
    row.get_by_label("Rate, as").fill("100/m")
    row.get_by_role("button", name="Set limits").focus()
    storage.enqueue(Job.new("nobody-has-this", queue="video"))
    expect(row.locator("td[data-label=Enqueued]")).to_have_text("2")  # what was typed is kept
    shown.keyboard.press("Enter")
    expect(shown.get_by_role("status")).to_have_text("video: 3 running, 100/m.")
    expect(row.locator("summary")).to_have_text("3 running, 100/m")

    limits = {each.limit.name: each.limit for each in storage.standings()}
    assert limits["images"].paused
    video = limits["video"]
    assert (video.kind, video.max_running, video.rate) == (LimitKind.QUEUE, 3, Rate.parse("100/m"))


def test_a_button_that_is_pressed_twice_makes_one_change(tab: Watched, storage: Storage) -> None:
    storage.upsert_recurring_job(RecurringJob.new("once", "0 0 1 1 *", "nobody-has-this"))
    tab.open("/recurring")
    tab.page.get_by_role("button", name="Run once now").hover()
    sent: list[Route] = []

    def hold_the_first(route: Route) -> None:
        sent.append(route)
        if len(sent) > 1:
            route.continue_()

    tab.page.route("**/recurring/run", hold_the_first)
    with tab.page.expect_request("**/recurring/run"):
        press(tab.page)
    press(tab.page)  # while the answer to the first press is awaited
    sent[0].continue_()

    expect(tab.page.get_by_role("status")).to_contain_text("once: the job ")
    assert len(sent) == 1
    assert [act.subject for act in storage.list_acts().acts] == ["once"]


def test_a_template_is_deleted_after_a_question(tab: Watched, storage: Storage) -> None:
    for name in ("old", "brief"):
        storage.upsert_recurring_job(RecurringJob.new(name, "0 0 1 1 *", "quick"))
    tab.agreed = ["Delete the template old? Jobs that it has made stay."]

    tab.open("/recurring/template?id=old")
    tab.page.get_by_role("button", name="Delete old").click()
    expect(tab.page.get_by_role("status")).to_have_text("old is deleted; its jobs stay.")
    assert storage.get_recurring_job("old") is None

    tab.open("/recurring/template?id=brief")
    storage.remove_recurring_job("brief")
    expect(tab.page.get_by_text("This template was deleted.")).to_be_visible()


# The server replaces each of its workers twice.
def test_a_server_does_what_it_is_asked_on_the_page(
    tab: Watched, storage: Storage, file_url: str, tmp_path: Path
) -> None:
    shown = tab.page
    with running_server(file_url, tmp_path, "-w", "2", "--server-name", "blue") as server:
        job_id = enqueue(storage, "nap", seconds=600)
        wait_until(lambda: any(line.job_id == job_id for line in server.journal()), what="the nap")
        tab.open("/servers")
        shown.get_by_role("button", name="Stacks: blue").click()
        expect(shown.get_by_role("main")).to_contain_text("2 workers told")
        expect(shown.get_by_role("main")).to_contain_text("in nap")
        assert tab.barriers() == []

        tab.open("/servers")
        tab.agreed = [
            "Cancel the job nap of worker blue",
            "Have blue end what it has claimed, and stop then?",
        ]
        shown.get_by_role("button", name=re.compile("Cancel the job of worker blue")).click()
        expect(shown.get_by_role("status")).to_contain_text("asked to end")
        wait_for_state(storage, job_id, StateName.DELETED)

        before = server.worker_pids()
        shown.get_by_role("button", name="Pause: blue").click()
        expect(shown.get_by_role("main")).to_contain_text("claims are paused")
        shown.get_by_role("button", name="Resume: blue").click()
        expect(shown.get_by_role("main")).to_contain_text("claims are resumed")
        shown.get_by_role("button", name="Replace worker blue 2").click()
        expect(shown.get_by_role("main")).to_contain_text("replaced by pid")
        shown.get_by_role("button", name="Reload: blue").click()
        expect(shown.get_by_text("2 workers replaced", exact=True)).to_be_visible()  # not "1 of 2 workers"
        wait_until(lambda: len(server.worker_pids()) == 2)
        assert set(server.worker_pids().values()).isdisjoint(before.values())

        shown.get_by_role("button", name="Drain and stop: blue").click()
        assert server.wait() == 0
        expect(shown.get_by_role("heading", name="blue")).to_have_count(0)

    asked = [(act.what, act.by.who, act.by.where) for act in storage.list_acts().acts]
    kinds = ("drain", "reload", "replace", "resume", "pause", "cancel job", "stacks")
    assert asked == [(kind, "anybody", "web from 127.0.0.1") for kind in kinds]


def test_a_link_of_another_site_finds_who_is_signed_in_and_his_other_tabs_go_on(
    plain: Page, storage: Storage, file_url: str, tmp_path: Path
) -> None:
    job_id = storage.enqueue(Job.new("thumb"))
    with served(file_url, tmp_path, env={"QML_MP_WEB_TOKEN": TOKEN}) as page:
        plain.goto(page.origin)
        plain.get_by_label("Token").fill(TOKEN)
        plain.get_by_role("button", name="Sign in").click()
        expect(plain).to_have_url(f"{page.origin}/")

        with plain.context.new_page() as mail:  # of no origin, and so of another site
            mail.set_content(f'<a href="{page.origin}/jobs/{job_id}">the job</a>')
            mail.get_by_role("link", name="the job").click()
            expect(mail).to_have_url(f"{page.origin}/jobs/{job_id}")

        plain.get_by_role("button", name="Sign out").click()
        expect(plain).to_have_url(f"{page.origin}/sign-in")
        plain.goto("about:blank")


def test_the_overview_makes_a_picture_for_the_readme(
    tab: Watched, storage: Storage, file_url: str, tmp_path: Path
) -> None:
    everyday.fill(storage)
    let_time_pass(file_url)
    path = Path(os.environ.get(PICTURE) or tmp_path / "page.png")
    tab.page.set_viewport_size({"width": 1100, "height": 925})
    tab.open("/")

    tab.page.screenshot(path=path, caret="initial")

    assert path.stat().st_size < MOST_PICTURE_BYTES


@contextmanager
def running_server(url: str, folder: Path, *flags: str) -> Iterator[Server]:
    """A server within the block. It soon kills what does not end when it is asked to."""
    grace = {"QML_MP_CANCEL_GRACE": "0.2", "QML_MP_TERM_GRACE": "0.2", LEAVES_PATIENTLY: "1"}
    server = Server(
        url=patient_url(url), folder=folder, flags=flags, environment=grace,
        program=("-m", "tests.failpoints", ""),
    )  # fmt: skip
    try:
        yield server.start(ready=int(flags[1]))
    finally:
        server.clean_up()


def row_of(tab: Watched, queue: str) -> Locator:
    """The row of the queue in the list."""
    return tab.page.get_by_role("row").filter(has=tab.page.get_by_role("rowheader", name=queue))


def hide(tab: Watched, hidden: bool) -> None:
    """As a browser does with a tab that nobody sees."""
    tab.page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true})
            document.dispatchEvent(new Event("visibilitychange"))
        }""",
        hidden,
    )


def press(page: Page) -> None:
    """Whatever is under the pointer."""
    page.mouse.down()
    page.mouse.up()


def fail_many(storage: Storage, method: str, *, count: int) -> None:
    """So many jobs that have failed."""
    storage.enqueue_many(Job.new(method, queue=method) for _ in range(count))
    fetch = Fetch(worker_id="worker", server_id="server", queues=(method,))
    claims = storage.exchange((), fetch=fetch, limit=count, retention=BY_DEFAULT).claims
    error = ErrorInfo(type="ValueError", message="no")
    failed = [(claim, Failure(error=error)) for claim in claims]
    storage.exchange(failed, fetch=None, limit=0, retention=BY_DEFAULT)
    assert len(claims) == count


def let_time_pass(url: str) -> None:
    """As if the jobs had come over the last minutes, and not all at once."""
    instants = ("created_at", "enqueued_at", "started_at", "finished_at")
    earlier = ", ".join(f"{column} = {column} - (7 + rowid * 5 % 80) * 1000000" for column in instants)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(f"UPDATE qml_jobs SET {earlier}")
