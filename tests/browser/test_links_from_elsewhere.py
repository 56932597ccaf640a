"""A link to the page in a chat, a mail or an issue: it leads there, and open tabs go on."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect

from qml_mp.core.job import Job
from qml_mp.storage.store import Storage
from tests.browser.conftest import ONE_BACKEND, served

pytestmark = ONE_BACKEND
_TOKEN = "a-token-that-nobody-guesses"


def test_a_link_of_another_site_finds_who_is_signed_in_and_his_other_tabs_go_on(
    plain_page: Page, storage: Storage, url: str, tmp_path: Path
) -> None:
    job_id = storage.enqueue(Job.new("thumb"))
    (tmp_path / "token").write_text(_TOKEN)
    with served(url, tmp_path, "--token-file", str(tmp_path / "token")) as origin:
        plain_page.goto(origin)
        plain_page.get_by_label("Token").fill(_TOKEN)
        plain_page.get_by_role("button", name="Sign in").click()
        expect(plain_page).to_have_url(f"{origin}/")

        with plain_page.context.new_page() as mail:  # of no origin, and so of another site
            mail.set_content(f'<a href="{origin}/jobs/{job_id}">the job</a>')
            mail.get_by_role("link", name="the job").click()
            expect(mail).to_have_url(f"{origin}/jobs/{job_id}")

        plain_page.get_by_role("button", name="Sign out").click()
        expect(plain_page).to_have_url(f"{origin}/sign-in")
        plain_page.goto("about:blank")  # nothing is asked for any more when the server ends
