"""Tests: the screens of servers, of the system and of the audit over HTTP."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from qml_mp.core.acts import Asker
from qml_mp.storage.open import open_storage
from qml_mp.storage.store import Storage
from qml_mp.web import dashboard
from tests.processes.harness import Server, wait_until
from tests.storage.helpers import patient_url
from tests.storage.test_registry import server as registered
from tests.web.asgi import Visitor
from tests.web.serving import Served
from tests.web.test_jobs_screens import link, text_of

pytestmark = pytest.mark.xdist_group("web-servers")


@pytest.fixture
def visitor(page: Served) -> Iterator[httpx.Client]:
    with page.visitor() as visitor:
        yield visitor


def test_the_system_screen_tells_schema_and_versions_and_no_url(
    visitor: httpx.Client, storage: Storage
) -> None:
    shown = text_of(visitor.get("/system"))

    assert f"version {storage.schema_version()}, as this version of qml-mp needs it" in shown
    assert storage.size().version in shown
    assert "://" not in shown


# A server tells of its loops some seconds after its start.
def test_a_server_tells_its_loops_and_where_its_settings_come_from(file_url: str, tmp_path: Path) -> None:
    server = Server(
        url=patient_url(file_url), folder=tmp_path, flags=("-w", "1", "--shutdown-timeout", "7s"),
        environment={"QML_MP_CANCEL_GRACE": "3s"},
    )  # fmt: skip
    with closing(open_storage(file_url)) as storage:
        try:
            server.start()
            wait_until(lambda: any(told.loops for told in storage.server_descriptions().values()))
            shown = text_of(Visitor(dashboard(storage)).get("/system"))
        finally:
            server.clean_up()

    assert " heartbeat " in shown.partition("Last success")[2]
    assert "shutdown_timeout 7s the command line" in shown
    assert "cancel_grace 3s QML_MP_CANCEL_GRACE" in shown
    assert re.search(r"term_grace \S+ default", shown)


def test_a_server_of_an_older_version_is_shown_without_what_it_cannot_do(
    visitor: httpx.Client, storage: Storage
) -> None:
    storage.register_server(registered("old#1"))

    shown = visitor.get("/servers").text
    storage.reclaim_server("old#1", silent_for=None)

    assert ">old</h2>" in shown
    assert 'aria-label="Stacks: old"' not in shown


def test_the_audit_is_shown_by_pages_and_each_entry_by_itself(
    visitor: httpx.Client, storage: Storage
) -> None:
    for number in range(60):
        asker = Asker(who="anna", where="web 10.1.2.3")
        storage.audit(asker, "pause queue", f"q{number}", said=f"as number {number}")

    first = visitor.get("/audit")
    second = visitor.get(link(first, "Older"))
    [one] = re.findall(r'href="(/audit/[^"?]+)"(?:(?!</tr>).)*?>q9<', second.text, re.DOTALL)

    assert text_of(first).count("pause queue") >= 50
    assert "q9 " in text_of(second)
    assert "as number 9" in text_of(visitor.get(one))
