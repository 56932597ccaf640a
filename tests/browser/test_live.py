"""A screen follows what happens by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from qml_mp.core.job import Job
from tests.browser.conftest import Site
from tests.browser.watching import Watched
from tests.processes.harness import Server


@pytest.fixture(scope="module")
def server(servers: Callable[..., Server]) -> Server:
    """One that runs."""
    return servers("-w", "1").start()


def test_a_job_that_ends_appears_by_itself(page: Watched, site: Site, server: Server) -> None:
    page.open("/")
    expect(page.page.locator("#stream")).to_have_text("live")
    page.page.evaluate("window.stays = true")
    before = int(succeeded(page).inner_text())

    site.storage.enqueue(Job.new("quick", {}))

    expect(succeeded(page)).to_have_text(str(before + 1))
    expect(page.page.locator("#stream")).to_have_text("live")  # the stream told it, and no poll
    assert page.page.evaluate("window.stays") is True


def test_a_page_that_was_hidden_is_fresh_when_it_is_seen_again(
    page: Watched, site: Site, server: Server
) -> None:
    page.open("/")
    expect(page.page.locator("#stream")).to_have_text("live")
    before = int(succeeded(page).inner_text())
    hide(page, True)
    expect(page.page.locator("#stream")).to_have_text("not live")

    site.storage.enqueue(Job.new("quick", {}))
    hide(page, False)

    expect(succeeded(page)).to_have_text(str(before + 1))


def test_a_part_that_was_pressed_with_another_button_goes_on(
    page: Watched, site: Site, server: Server
) -> None:
    """Whose release a menu may have taken."""
    page.open("/")
    expect(page.page.locator("#stream")).to_have_text("live")
    before = int(succeeded(page).inner_text())
    succeeded(page).hover()

    page.page.mouse.down(button="right")
    site.storage.enqueue(Job.new("quick", {}))

    expect(succeeded(page)).to_have_text(str(before + 1))
    page.page.mouse.up(button="right")


def succeeded(page: Watched) -> Locator:
    """How many jobs have succeeded, as the overview says."""
    return page.page.locator(".figure").filter(has_text="succeeded").locator(".value").first


def hide(page: Watched, hidden: bool) -> None:
    """As a browser does with a tab that is not looked at."""
    page.page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true})
            document.dispatchEvent(new Event("visibilitychange"))
        }""",
        hidden,
    )
