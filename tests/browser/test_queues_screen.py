"""The Queues screen: what waits and what holds it back, changed by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Route, expect

from qml_mp.core.job import Job
from qml_mp.core.limits import Limit, LimitKind, Rate
from qml_mp.core.state import StateName
from tests.browser.conftest import ONE_BACKEND, Site, served
from tests.browser.watching import Watched
from tests.processes.harness import Server, wait_for_state
from tests.storage.helpers import HOUR

pytestmark = ONE_BACKEND


@pytest.fixture(scope="module")
def server(servers: Callable[..., Server]) -> Server:
    """One that runs."""
    return servers("-w", "1", "-q", "images").start()


def row_of(page: Watched, queue: str) -> Locator:
    """That of the queue in the list."""
    return page.page.get_by_role("row").filter(has=page.page.get_by_role("rowheader", name=queue))


def test_a_queue_is_paused_and_resumed(page: Watched, site: Site, server: Server) -> None:
    storage, shown = site.storage, page.page
    storage.enqueue(Job.new("quick", {}, queue="images", delay=HOUR))
    page.open("/queues")

    shown.get_by_role("button", name="Pause images").click()
    expect(shown.get_by_role("status")).to_have_text("images is paused. Jobs of it that run go on.")
    job_id = storage.enqueue(Job.new("quick", {}, queue="images"))

    row = row_of(page, "images")
    expect(row).to_contain_text("paused")
    expect(row.locator("td[data-label=Enqueued]")).to_have_text("1")
    shown.get_by_role("button", name="Resume images").click()
    expect(shown.get_by_role("status")).to_have_text("images is resumed.")
    wait_for_state(storage, job_id, StateName.SUCCEEDED)
    expect(row.locator("td[data-label=Enqueued]")).to_have_text("0")


def test_a_change_that_is_answered_in_another_tab_holds_up_none_of_the_first(
    page: Watched, site: Site
) -> None:
    names, shown = ("one", "two"), page.page
    for name in names:
        site.storage.enqueue(Job.new("nobody-has-this", queue=name))
    page.open("/queues")

    with shown.context.expect_page() as opened:
        shown.get_by_role("button", name="Pause one").dblclick(modifiers=["ControlOrMeta"])
    expect(opened.value.get_by_role("status")).to_contain_text("one is paused.")
    opened.value.close()
    expect(shown.get_by_role("alert")).to_contain_text("That was not sent")
    shown.evaluate("dispatchEvent(new Event('focus'))")  # which a page without a screen never loses
    expect(shown.get_by_role("alert")).to_have_count(0)
    shown.get_by_role("button", name="Pause two").click()

    expect(shown.get_by_role("status")).to_contain_text("two is paused.")
    acts = [(act.what, act.subject) for act in site.storage.list_acts(limit=50).acts]
    assert [acts.count(("pause queue", name)) for name in names] == [1, 1]
    assert {each.limit.name for each in site.storage.standings() if each.limit.paused} == {*names}
    for name in names:
        site.storage.set_paused(name, False)


def test_a_change_that_waits_for_the_answer_to_another_one_is_told_as_not_sent(
    page: Watched, site: Site
) -> None:
    for name in ("three", "four"):
        site.storage.enqueue(Job.new("nobody-has-this", queue=name))
    page.open("/queues")
    shown, sent = page.page, list[Route]()

    def stop(route: Route) -> None:
        sent.append(route)
        route.abort("aborted")  # as Escape does: no answer comes

    shown.route("**/queues/pause", stop)

    with shown.expect_event("requestfailed"):
        shown.get_by_role("button", name="Pause three").click()
    shown.get_by_role("button", name="Pause four").click()

    expect(shown.get_by_role("alert")).to_contain_text("That was not sent")
    site.storage.enqueue(Job.new("nobody-has-this", queue="four"))
    expect(row_of(page, "four").locator("td[data-label=Enqueued]")).not_to_have_text("1")
    expect(shown.get_by_role("alert")).to_contain_text("That was not sent")  # what is new does not hide it
    shown.evaluate("dispatchEvent(new Event('focus'))")  # no answer is elsewhere
    expect(shown.get_by_role("alert")).to_contain_text("That was not sent")
    assert len(sent) == 1
    shown.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))")
    expect(shown.get_by_role("alert")).to_have_count(0)  # back from the answer


def test_limits_are_set_shown_and_ended(page: Watched, site: Site) -> None:
    site.storage.enqueue(Job.new("nobody-has-this", queue="video"))
    page.open("/queues")
    shown = page.page
    row = row_of(page, "video")

    row.locator("summary").click()
    row.get_by_label("Running at most").fill("3")
    row.get_by_label("Rate, as").fill("100/m")
    row.get_by_role("button", name="Set limits").click()

    expect(shown.get_by_role("status")).to_have_text("video: 3 running, 100/m.")
    expect(row.locator("summary")).to_have_text("3 running, 100/m")
    [limit] = [each.limit for each in site.storage.standings() if each.limit.name == "video"]
    assert (limit.kind, limit.max_running, limit.rate) == (LimitKind.QUEUE, 3, Rate.parse("100/m"))
    row.locator("summary").click()
    row.get_by_label("Running at most").fill("")
    row.get_by_label("Rate, as").fill("")
    row.get_by_role("button", name="Set limits").click()
    expect(shown.get_by_role("status")).to_have_text("video: no limit.")
    assert "video" not in {each.limit.name for each in site.storage.standings()}


def test_what_is_typed_is_sent_after_the_list_was_shown_anew(page: Watched, site: Site) -> None:
    site.storage.enqueue(Job.new("nobody-has-this", queue="typed"))
    page.open("/queues")
    shown = page.page
    row = row_of(page, "typed")

    row.locator("summary").click()
    row.get_by_label("Running at most").fill("3")
    row.get_by_role("button", name="Set limits").focus()
    site.storage.enqueue(Job.new("nobody-has-this", queue="typed"))
    expect(row.locator("td[data-label=Enqueued]")).to_have_text("2")
    shown.keyboard.press("Enter")

    expect(shown.get_by_role("status")).to_have_text("typed: 3 running.")
    site.storage.limit(Limit(kind=LimitKind.QUEUE, name="typed"))


@pytest.mark.parametrize(
    ("field", "text", "told"),
    [
        ("Running at most", "many", "give a whole number from 1"),
        ("Running at most", "0", "max_running is 0"),
        ("Rate, as", "100/fortnight", "100/m"),
    ],
)
def test_a_limit_that_cannot_be_is_refused_with_what_to_do(
    field: str, text: str, told: str, page: Watched, site: Site
) -> None:
    site.storage.enqueue(Job.new("nobody-has-this", queue="video"))
    page.expected = ["400"]
    page.open("/queues")
    row = row_of(page, "video")

    row.locator("summary").click()
    row.get_by_label(field).fill(text)
    row.get_by_role("button", name="Set limits").click()

    expect(page.page.get_by_role("main")).to_contain_text(told)
    assert site.storage.standings() == []


def test_who_may_only_read_is_shown_no_action(page: Watched, site: Site) -> None:
    site.storage.enqueue(Job.new("nobody-has-this", queue="video"))
    with served(site.url, site.folder, "--read-only") as origin:
        page.origin = origin

        page.open("/queues")

        expect(page.page.get_by_role("rowheader", name="video")).to_be_visible()
        assert page.page.get_by_role("button").all() == []
        assert page.page.locator("form").all() == []
        page.check()
        page.page.goto("about:blank")
