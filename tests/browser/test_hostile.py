"""Texts that try to be something else, wherever storage has text: no screen runs them, or shows them cut."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import pytest
from playwright.sync_api import expect

from qml_mp.core.state import StateName
from qml_mp.printable import printable
from qml_mp.storage.values import JobFilter
from tests.browser import hostile
from tests.browser.conftest import ONE_BACKEND, Site
from tests.browser.screens import SCREENS
from tests.browser.watching import PHONE, Watched

NAMES = [path for path in ("/queues", "/recurring", "/servers") if path in SCREENS]
"""That have every text, as the names of what they are about."""
pytestmark = ONE_BACKEND
_LINKS = "[...document.querySelectorAll('a[href]')].map(each => each.href)"


@pytest.fixture(scope="module")
def filled(site: Site) -> Site:
    """All of them everywhere."""
    hostile.fill(site.storage)
    return site


@pytest.mark.parametrize("path", SCREENS)
def test_no_script_runs_and_nothing_sticks_out(path: str, page: Watched, filled: Site) -> None:
    page.page.set_viewport_size(PHONE)

    page.open(path)
    for details in page.page.locator("details:not([open]) > summary").all()[:20]:
        details.click()

    assert page.overflow() == []


@pytest.mark.parametrize("path", NAMES)
def test_every_text_is_shown_whole(path: str, page: Watched, filled: Site) -> None:
    page.open(path)

    shown = words(page.page.evaluate("document.querySelector('main').textContent"))

    assert [text for text in hostile.TEXTS if words(printable(text)) not in shown] == []


def test_the_page_of_a_job_shows_its_texts_whole(page: Watched, filled: Site) -> None:
    for text in hostile.TEXTS:
        jobs = filled.storage.list_jobs(JobFilter(method=text), limit=10).jobs
        failed = next(job for job in jobs if job.state_name is StateName.FAILED)

        page.open(f"/jobs/{failed.id}")

        shown = words(page.page.evaluate("document.querySelector('main').textContent"))
        assert shown.count(words(printable(text))) >= 4  # method, queue, error and payload


def test_a_button_is_about_the_very_queue_beside_which_it_stands(page: Watched, filled: Site) -> None:
    for text in (hostile.TEXTS[4], "..%2f..%2fetc%2fpasswd%00.html", "a/b?c=d&e=f#g;h=i+j%20k"):
        page.open("/queues")

        page.page.get_by_role("button", name=f"Pause {text}", exact=True).click()

        paused = page.page.get_by_role("button", name=f"Resume {text}", exact=True)
        expect(paused).to_be_visible()
        assert [each.limit.name for each in filled.storage.standings() if each.limit.paused] == [text]
        paused.click()
        expect(paused).to_have_count(0)


@pytest.mark.parametrize("path", SCREENS)
def test_every_link_leads_to_a_page_of_ours(path: str, page: Watched, filled: Site) -> None:
    page.open(path)

    links = {urljoin(page.origin, link) for link in page.page.evaluate(_LINKS)}

    assert {link for link in links if not link.startswith(f"{page.origin}/")} == set()
    answers = {link: page.page.request.get(link).status for link in links if urlsplit(link).path != "/events"}
    assert {link: status for link, status in answers.items() if status != 200} == {}


def words(text: str) -> str:
    """Without regard to white space, of which a browser keeps what it likes."""
    return "".join(text.split())
