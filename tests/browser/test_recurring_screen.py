"""The Recurring screen: templates in words, when they fire next, run and switched by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Route, expect

from qml_mp.core.recurring import RecurringJob
from qml_mp.core.state import StateName
from tests.browser.conftest import ONE_BACKEND, Site, served
from tests.browser.watching import PHONE, Watched
from tests.processes.harness import Server, wait_for_state, wait_until

pytestmark = ONE_BACKEND


@pytest.fixture(scope="module", autouse=True)
def templates(site: Site) -> None:
    """Three, of which no server makes a job while the tests run."""
    for template in (
        RecurringJob.new("nightly", "30 2 31 3 *", "quick", {"password": "hunter2"}, tz="Europe/Berlin"),
        RecurringJob.new("new-year", "0 0 1 1 *", "quick", queue="slow"),
        RecurringJob.new("nobody", "0 0 0 1 1 * 2098", "nobody-has-this"),
    ):
        site.storage.upsert_recurring_job(template)


@pytest.fixture(scope="module")
def server(servers: Callable[..., Server]) -> Server:
    return servers("-w", "1").start()


def row_of(page: Watched, recurring_id: str) -> Locator:
    """Its line in the list."""
    link = page.page.get_by_role("link", name=recurring_id, exact=True)
    return page.page.get_by_role("row").filter(has=link)


def test_a_template_is_run_now_and_its_job_is_shown(page: Watched, site: Site, server: Server) -> None:
    page.open("/recurring")

    page.page.get_by_role("button", name="Run nightly now").click()

    expect(page.page.get_by_role("status")).to_contain_text("nightly: the job ")
    template = site.storage.get_recurring_job("nightly")
    assert template is not None
    assert template.last_job_id is not None
    wait_for_state(site.storage, template.last_job_id, StateName.SUCCEEDED, StateName.FAILED)
    expect(row_of(page, "nightly").locator("td[data-label='Last jobs']")).not_to_contain_text("enqueued")
    (act,) = (act for act in site.storage.list_acts(limit=50).acts if act.what == "run template")
    assert (act.subject, act.by.where) == ("nightly", "web from 127.0.0.1")


def test_a_button_that_is_pressed_twice_asks_for_one_change(page: Watched, site: Site) -> None:
    site.storage.upsert_recurring_job(RecurringJob.new("once", "0 0 1 1 *", "nobody-has-this"))
    page.open("/recurring?text=once")
    box = page.page.get_by_role("button", name="Run once now").bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    sent: list[Route] = []

    def hold_the_first(route: Route) -> None:
        sent.append(route)
        if len(sent) > 1:
            route.continue_()

    page.page.route("**/recurring/run", hold_the_first)

    with page.page.expect_request("**/recurring/run"):
        page.page.mouse.click(*middle)
    page.page.mouse.click(*middle)  # while the answer to the first press is awaited
    sent[0].continue_()

    expect(page.page.get_by_role("status")).to_contain_text("once: the job ")
    assert len(sent) == 1
    runs = [act for act in site.storage.list_acts(limit=50).acts if act.subject == "once"]
    assert len(runs) == 1
    site.storage.remove_recurring_job("once")


def test_a_template_is_turned_off_and_on(page: Watched, site: Site) -> None:
    page.open("/recurring?text=new-year")
    row = row_of(page, "new-year")

    page.page.get_by_role("button", name="Turn new-year off").click()

    expect(page.page.get_by_role("status")).to_have_text("new-year is disabled.")
    expect(row.locator("td[data-label=State]")).to_contain_text("off")
    assert page.page.url.endswith("/recurring?text=new-year")
    page.page.get_by_role("button", name="Turn new-year on").click()
    expect(page.page.get_by_role("status")).to_contain_text("new-year is enabled; it fires next at 20")
    expect(row.locator("td[data-label=State]")).to_contain_text("on")
    template = site.storage.get_recurring_job("new-year")
    assert template is not None
    assert template.enabled


def test_firings_are_shown_in_the_zone_and_in_utc_with_what_the_clock_does(page: Watched) -> None:
    page.open("/recurring")
    page.page.get_by_role("link", name="nightly").click()

    table = page.page.get_by_role("table", name="Next firings")
    expect(page.page.get_by_text("at 02:30 on day 31 of the month in March")).to_be_visible()
    expect(table.get_by_role("row")).to_have_count(13)
    first = table.get_by_role("row").filter(has_text="2030-03-31 03:00:00 CEST")
    expect(first).to_contain_text("2030-03-31 01:00:00 UTC")
    expect(first).to_contain_text("the wall time that is meant is skipped")
    page.page.get_by_text("Payload", exact=True).click()
    expect(page.page.get_by_role("main")).not_to_contain_text("hunter2")


def test_templates_are_chosen_by_fields_that_stand_in_the_url(page: Watched, server: Server) -> None:
    page.open("/recurring")

    page.page.get_by_label("Id, method or queue").fill("slow")
    page.page.get_by_role("button", name="Show").click()

    expect(row_of(page, "new-year")).to_be_visible()
    expect(row_of(page, "nightly")).to_have_count(0)
    page.page.get_by_role("link", name="All", exact=True).click()
    page.page.get_by_label("State").select_option("does not fire")
    page.page.get_by_role("button", name="Show").click()
    expect(row_of(page, "nobody")).to_contain_text("no live server knows its method nobody-has-this")
    expect(row_of(page, "nightly")).to_have_count(0)
    page.page.get_by_label("Made by").select_option("code")
    page.page.get_by_role("button", name="Show").click()
    expect(page.page.get_by_text("No template is like that.")).to_be_visible()


def test_a_template_is_deleted_after_a_question(page: Watched, site: Site) -> None:
    site.storage.upsert_recurring_job(RecurringJob.new("old", "0 0 1 1 *", "quick"))
    page.agreed = ["Delete the template old? Jobs that it has made stay."]
    page.open("/recurring/template?id=old")

    page.page.get_by_role("button", name="Delete old").click()

    expect(page.page.get_by_role("status")).to_have_text("old is deleted; its jobs stay.")
    wait_until(lambda: site.storage.get_recurring_job("old") is None)


def test_one_that_is_not_there_is_told_of(page: Watched) -> None:
    page.expected = ["404"]
    page.page.goto(f"{page.origin}/recurring/template?id=<none>")

    expect(page.page.get_by_role("main")).to_contain_text("No recurring template has the id '<none>'")


def test_the_screen_of_one_template_fits_a_phone_and_can_be_used_by_all(page: Watched) -> None:
    page.page.set_viewport_size(PHONE)

    page.open("/recurring/template?id=nightly")

    assert page.overflow() == []
    for theme in ("light", "dark"):
        page.page.emulate_media(color_scheme=theme)
        assert page.barriers() == []
    page.pictures("recurring-template-phone")


def test_who_may_only_read_is_shown_no_action(page: Watched, site: Site) -> None:
    with served(site.url, site.folder, "--read-only") as origin:
        page.origin = origin

        for path in ("/recurring", "/recurring/template?id=nightly"):
            page.open(path)
            assert page.page.locator("form[method=post]").all() == []
        page.check()
        page.page.goto("about:blank")


def test_a_screen_that_is_open_says_that_its_template_was_deleted(page: Watched, site: Site) -> None:
    site.storage.upsert_recurring_job(RecurringJob.new("brief", "0 0 1 1 *", "quick"))
    page.open("/recurring/template?id=brief")

    site.storage.remove_recurring_job("brief")

    expect(page.page.get_by_text("This template was deleted.")).to_be_visible()
