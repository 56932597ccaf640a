"""Every screen, with what a shop has on a working day: it opens without a complaint of the browser, keeps to
what a screen reader needs in light and dark, and fits a phone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.browser import everyday
from tests.browser.conftest import ONE_BACKEND, Site
from tests.browser.screens import SCREENS
from tests.browser.watching import PHONE, THEMES, WIDE, Watched

pytestmark = ONE_BACKEND
STATES = ("failed", "running")
OF_JOBS = [f"/jobs/{state}" for state in STATES]


@pytest.fixture(scope="module")
def job_ids(site: Site) -> Sequence[str]:
    """One that has failed, one that runs, one that succeeded."""
    return everyday.fill(site.storage)


@pytest.mark.parametrize("path", [*SCREENS, *OF_JOBS])
def test_a_screen_opens_without_a_complaint_can_be_used_by_all_and_fits_a_phone(
    path: str, page: Watched, site: Site, job_ids: Sequence[str]
) -> None:
    of_job = {f"/jobs/{name}": f"/jobs/{job_id}" for name, job_id in zip(STATES, job_ids, strict=False)}

    for size, theme, name in zip((WIDE, PHONE), THEMES, ("wide", "phone"), strict=True):
        page.page.set_viewport_size(size)
        page.page.emulate_media(color_scheme=theme)
        page.open(of_job.get(path, path))
        assert page.page.get_by_role("heading", level=1).count() == 1
        assert page.overflow() == []
        assert page.barriers() == []
        page.pictures(f"{path.strip('/').replace('/', '-') or 'overview'}-{name}")


def test_every_screen_is_in_the_navigation(page: Watched, job_ids: Sequence[str]) -> None:
    page.open("/")

    links = page.page.get_by_role("navigation", name="Screens").get_by_role("link")

    assert [link.get_attribute("href") for link in links.all()] == list(SCREENS)
