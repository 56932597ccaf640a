"""Tests of the page: a real Chromium, a real `qml-mp web`, and a storage on either backend."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from qml_mp.storage.store import Storage
from tests.browser.chromium import NoChromium, arguments, find_chromium
from tests.browser.watching import TELLS_VIOLATIONS, WIDE, Watched, watching
from tests.fresh_storage import fresh_url
from tests.processes.harness import ROOT, Server, wait_until
from tests.storage.helpers import open_patiently, patient_url
from tests.until import PATIENCE_S
from tests.warm import Process, launch

PATIENCE_MS = 60_000
"""How long a test waits for what a page shows in a moment; it bounds a run that hangs and judges nothing."""

ONE_BACKEND = pytest.mark.parametrize("url", ["sqlite"], indirect=True, scope="module")
"""Of what a browser does with a screen: that it is read from both is the matter of tests/web."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A page that is served, and what it shows."""

    origin: str
    url: str
    storage: Storage
    folder: Path


@contextmanager
def started_browser() -> Iterator[Browser]:
    """A Chromium within the block. Afterwards nothing of it is left in this process, which others fork."""
    try:
        program = find_chromium()
    except NoChromium as error:
        pytest.fail(str(error), pytrace=False)
    before = threading.enumerate()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=arguments())
            try:
                yield browser
            finally:
                browser.close()
    finally:
        for thread in threading.enumerate():
            if thread not in before:  # one waits for the end of the driver, which takes a moment longer
                thread.join(PATIENCE_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for the tests of a module: to start it takes longer than most of them."""
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def window(browser: Browser) -> Iterator[Page]:
    """One for the tests of a module: for each that is opened Chromium starts processes, which takes more of a
    processor than most of them."""
    with browser.new_context(viewport=WIDE, reduced_motion="reduce", locale="en-GB") as context:
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(TELLS_VIOLATIONS)
        yield context.new_page()


@contextmanager
def window_elsewhere(browser: Browser, *, zone: str | None = None, script: str = "") -> Iterator[Page]:
    """Another one within the block, of a person in that zone; `script` runs before those of each page."""
    expect.set_options(timeout=PATIENCE_MS)
    with browser.new_context(timezone_id=zone, reduced_motion="reduce") as context:
        context.set_default_timeout(PATIENCE_MS)
        context.add_init_script(script)
        yield context.new_page()


@pytest.fixture
def plain_page(window: Page) -> Iterator[Page]:
    """A page that has nothing of the one before: not its size, theme, pointer, cookies or routes."""
    expect.set_options(timeout=PATIENCE_MS)
    window.mouse.move(0, 0)
    window.set_viewport_size(WIDE)
    window.emulate_media(color_scheme="light")
    yield window
    window.goto("about:blank")  # which ends what the page still asks for, before its server ends
    window.unroute_all()
    window.context.clear_cookies()
    assert window.context.pages == [window]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A fresh storage for the tests of a module; nothing is there yet."""
    yield from fresh_url(request, tmp_path_factory)


@pytest.fixture(scope="module")
def storage(url: str) -> Iterator[Storage]:
    """A client of the storage."""
    with closing(open_patiently(url)) as storage:
        storage.migrate()
        yield storage


@pytest.fixture(scope="module")
def site(storage: Storage, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The page of the storage, served by `qml-mp web`."""
    folder = tmp_path_factory.mktemp("web")
    with served(url, folder) as origin:
        yield Site(origin=origin, url=url, storage=storage, folder=folder)


@pytest.fixture
def page(plain_page: Page, site: Site) -> Iterator[Watched]:
    """A page as in a fresh window; the test fails at its end when anything has gone wrong on it."""
    with watching(plain_page, site.origin, log=site.folder / "web.log") as watched:
        yield watched
        watched.check()


@pytest.fixture(scope="module")
def servers(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Makes servers on the storage, which are ended after the module's tests."""
    with ExitStack() as stack:

        def make(*flags: str, **environment: str) -> Server:
            folder = tmp_path_factory.mktemp("server")
            server = Server(url=patient_url(url), folder=folder, flags=flags, environment=environment)
            stack.callback(server.clean_up)
            return server

        yield make


@contextmanager
def served(url: str, folder: Path, *flags: str) -> Iterator[str]:
    """Run `qml-mp web` within the block; where it is."""
    with (folder / "web.log").open("wb") as log, open(os.devnull, "rb") as nothing:
        process = launch(
            [sys.executable, "-m", "qml_mp", "--url", patient_url(url), "web", "--port", "0", *flags],
            cwd=folder, env=_environment(), stdin=nothing.fileno(), stdout=log.fileno(), stderr=log.fileno(),
        )  # fmt: skip
    try:
        yield wait_until(lambda: _address(process, folder / "web.log"), what="the page")
    finally:
        process.kill()
        process.wait()


def _address(process: Process, log: Path) -> str | None:
    text = log.read_text(errors="replace")
    assert process.poll() is None, text
    found = re.search(r"http://[\w.:\[\]]+\d", text)
    return found and found[0]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QML_MP_")}
    return {**kept, "PYTHONPATH": str(ROOT)}
