"""The Servers screen and the audit: what a server is asked on the page, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from qml_mp.core.acts import ActKind, Asker
from qml_mp.core.state import StateName
from qml_mp.storage.store import Storage
from tests.browser.conftest import Site, served
from tests.browser.watching import PHONE, Watched
from tests.processes.harness import Server, enqueue, wait_for_state, wait_until
from tests.processes.leaving import leaving_patiently
from tests.storage.test_registry import server as registered


@pytest.fixture(scope="module")
def server(servers: Callable[..., Server]) -> Server:
    """One that runs."""
    return leaving_patiently(servers)("-w", "2", "--server-name", "blue").start(ready=2)


def ended(storage: Storage, kind: ActKind) -> str | None:
    """What became of the newest act of the kind."""
    newest = next(act for act in storage.list_acts().acts if act.what == kind)
    return newest.said if newest.state.is_final else None


def test_the_stacks_of_a_server_are_told_on_the_page(page: Watched, site: Site, server: Server) -> None:
    job_id = enqueue(site.storage, "nap", seconds=600)
    wait_until(lambda: any(line.job_id == job_id for line in server.journal()), what="the nap")
    page.open("/servers")

    page.page.get_by_role("button", name="Stacks: blue").click()

    expect(page.page.get_by_role("main")).to_contain_text("2 workers told")
    expect(page.page.get_by_role("main")).to_contain_text("in nap")
    assert page.barriers() == []
    page.page.set_viewport_size(PHONE)
    assert page.overflow() == []
    page.open("/servers")
    page.agreed = ["Cancel the job nap of worker blue"]
    page.page.get_by_role("button", name=re.compile("Cancel the job of worker blue")).click()
    expect(page.page.get_by_role("status")).to_contain_text("asked to end")
    wait_for_state(site.storage, job_id, StateName.DELETED)
    assert site.storage.list_acts().acts[0].what == "cancel job"


def test_a_server_is_paused_resumed_reloaded_and_a_worker_replaced(
    page: Watched, site: Site, server: Server
) -> None:
    before = server.worker_pids()
    page.open("/servers")
    shown = page.page

    shown.get_by_role("button", name="Pause: blue").click()
    expect(shown.get_by_role("status")).to_contain_text("blue was asked to claim nothing more.")
    expect(shown.get_by_role("main")).to_contain_text("claims are paused")
    shown.get_by_role("button", name="Resume: blue").click()
    expect(shown.get_by_role("main")).to_contain_text("claims are resumed")
    shown.get_by_role("button", name="Replace worker blue 2").click()
    expect(shown.get_by_role("main")).to_contain_text("replaced by pid")
    shown.get_by_role("button", name="Reload: blue").click()
    # Not "1 of 2 workers replaced", as it is told meanwhile.
    expect(shown.get_by_text("2 workers replaced", exact=True)).to_be_visible()

    wait_until(lambda: len(server.worker_pids()) == 2)
    after = server.worker_pids()
    assert set(after.values()).isdisjoint(before.values())
    asked = [(act.what, act.by.who, act.by.where) for act in site.storage.list_acts(limit=4).acts]
    assert asked == [
        (kind, "anybody", "web from 127.0.0.1") for kind in ("reload", "replace", "resume", "pause")
    ]


def test_a_server_is_drained_and_stopped(page: Watched, site: Site, servers: Callable[..., Server]) -> None:
    green = leaving_patiently(servers)("-w", "1", "--server-name", "green").start()
    page.open("/servers")
    page.agreed = ["Have green end what it has claimed, and stop then?"]

    page.page.get_by_role("button", name="Drain and stop: green").click()

    assert green.wait() == 0
    expect(page.page.get_by_role("heading", name="green")).to_have_count(0)
    assert ended(site.storage, ActKind.DRAIN) == "stopped"


def test_a_server_of_an_older_version_is_shown_without_what_it_cannot_do(page: Watched, site: Site) -> None:
    site.storage.register_server(registered("old#1"))
    page.open("/servers")

    expect(page.page.get_by_role("heading", name="old")).to_be_visible()

    assert page.page.get_by_role("button", name=re.compile(": old$")).all() == []
    site.storage.reclaim_server("old#1", silent_for=None)


def test_the_audit_is_shown_by_pages_and_each_entry_by_itself(page: Watched, site: Site) -> None:
    for number in range(60):
        site.storage.audit(page_asker(), "pause queue", f"q{number}", said=f"as number {number}")
    page.open("/audit")

    expect(page.page.get_by_role("rowheader", name="pause queue")).to_have_count(50)
    page.page.get_by_role("link", name="Older").click()
    expect(page.page.get_by_role("cell", name="q9", exact=True)).to_be_visible()
    page.page.get_by_role("row").filter(has_text="q9").get_by_role("link").click()
    expect(page.page.get_by_role("main")).to_contain_text("as number 9")
    assert page.barriers() == []


def page_asker() -> Asker:
    return Asker(who="anna", where="web 10.1.2.3")


def test_who_may_only_read_is_shown_no_action(page: Watched, site: Site, server: Server) -> None:
    with served(site.url, site.folder, "--read-only") as origin:
        page.origin = origin

        page.open("/servers")

        expect(page.page.get_by_role("heading", name="blue")).to_be_visible()
        assert page.page.get_by_role("button").all() == []
        page.check()
        page.page.goto("about:blank")
