"""The System screen: what the storage takes, and what servers tell of themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from tests.browser.conftest import Site
from tests.browser.watching import Watched
from tests.processes.harness import Server, wait_until


@pytest.fixture(scope="module")
def server(servers: Callable[..., Server]) -> Server:
    """One that runs, with a setting by a flag and one by the environment."""
    return servers("-w", "1", "-q", "images", "--shutdown-timeout", "7s", QML_MP_CANCEL_GRACE="3s").start()


def test_it_tells_schema_size_and_versions(page: Watched, site: Site) -> None:
    page.open("/system")

    shown = page.page.get_by_role("main")
    expect(shown).to_contain_text(
        f"version {site.storage.schema_version()}, as this version of qml-mp needs it"
    )
    expect(shown).to_contain_text(site.storage.size().version)
    assert "sqlite:///" not in shown.inner_text()
    assert "postgresql://" not in shown.inner_text()


def test_a_server_tells_its_loops_and_where_its_settings_come_from(
    page: Watched, site: Site, server: Server
) -> None:
    wait_until(lambda: any(told.loops for told in site.storage.server_descriptions().values()))
    page.open("/system")
    shown = page.page

    def row(name: str) -> Locator:
        return shown.get_by_role("row").filter(has=shown.get_by_role("rowheader", name=name, exact=True))

    expect(row("heartbeat").locator("time")).to_be_visible()
    expect(row("shutdown_timeout")).to_contain_text("7s")
    expect(row("shutdown_timeout")).to_contain_text("the command line")
    expect(row("cancel_grace")).to_contain_text("QML_MP_CANCEL_GRACE")
    shown.locator("summary").first.click()
    expect(row("term_grace")).to_contain_text("default")
