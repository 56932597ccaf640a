"""Tests: a page of a real browser, and everything that goes wrong on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    Response,
    ViewportSize,
    sync_playwright,
)

from tests.until import PATIENCE_S
from tests.web.chromium import NoChromium, arguments, find_chromium
from tests.web.hostile import OWNED

SCREENSHOTS = "QML_MP_TEST_SCREENSHOTS"
"""A folder for pictures of every screen; without it none are made."""
PATIENCE_MS = 60_000
"""How long a test waits for what a page shows in a moment; it bounds a run that hangs and judges nothing."""
PHONE: ViewportSize = {"width": 380, "height": 800}
WIDE: ViewportSize = {"width": 1280, "height": 900}
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
TELLS_VIOLATIONS = """
    addEventListener("securitypolicyviolation", event => console.error(
        `CSP violation: ${event.violatedDirective} ${event.blockedURI} `
        + `in ${event.sourceFile}:${event.lineNumber}:${event.columnNumber}, sample ${event.sample}`
    ))
"""
"""A script for every page that is opened: what its policy forbids is told on the console, as all else."""
_OVERFLOWING = """
    () => {
        const width = document.documentElement.clientWidth
        if (document.documentElement.scrollWidth <= width) return []
        const sticks_out = each => each.getBoundingClientRect().right > width + 0.5
        return [...document.querySelectorAll("body *")].filter(sticks_out).slice(0, 5).map(
            each => `${each.tagName.toLowerCase()}.${each.className}: ${each.textContent.trim().slice(0, 60)}`
        ).concat("the page is wider than the window")
    }
"""
_BAD_IMPACTS = ("serious", "critical")


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


@dataclass(kw_only=True, eq=False)
class Watched:
    """One page, with what has gone wrong on it since it is watched (see `watching`)."""

    page: Page
    origin: str
    log: Path | None = None
    """What the page's own process says."""
    problems: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of texts of problems that a test provokes."""
    agreed: list[str] = field(default_factory=list)
    """Parts of questions that a test answers with yes; any other dialog is a problem."""

    def listeners(self) -> dict[Any, Callable[[Any], None]]:
        """By the name of what the page tells: who is told of it."""
        return {
            "console": self._handle_console,
            "pageerror": lambda error: self.problems.append(f"page error: {error}"),
            "crash": lambda _: self.problems.append("the page crashed"),
            "dialog": self._handle_dialog,
            "request": self._handle_request,
            "requestfailed": self._handle_failed_request,
            "response": self._handle_response,
        }

    def open(self, path: str) -> None:
        """Go to a path of the page, and wait until it is there with its scripts."""
        response = self.page.goto(f"{self.origin}{path}", wait_until="load")
        assert response is not None
        assert response.ok, "\n".join([f"{path}: {response.status}", *self._end_of_log()])

    def check(self) -> None:
        """Fail the test if anything has gone wrong up to now."""
        # What the browser has told is handled before the answer, which comes after it.
        if self.page.evaluate("window.owned") is not None:
            self.problems.append(f"a script ran: it has set window.{OWNED}")
        wrong = [each for each in self.problems if not any(part in each for part in self.expected)]
        assert not wrong, "\n".join([*wrong, *self._end_of_log()])

    def overflow(self) -> list[str]:
        """What sticks out of the window to the right; empty: there is no horizontal scrolling."""
        found: list[str] = self.page.evaluate(_OVERFLOWING)
        return found

    def barriers(self) -> list[str]:
        """What axe-core finds serious: of each rule that is broken a line with the first elements."""
        results: dict[str, Any] = Axe().run(self.page).response
        return [
            f"{rule['id']}: {rule['help']}: {[node['html'][:200] for node in rule['nodes'][:3]]}"
            for rule in results["violations"]
            if rule["impact"] in _BAD_IMPACTS
        ]

    def pictures(self, name: str) -> None:
        """Keep pictures of the whole page in light and dark, if pictures are wanted."""
        if (folder := os.environ.get(SCREENSHOTS)) is None:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        for theme in THEMES:
            self.page.emulate_media(color_scheme=theme)
            # To hide the caret would set inline styles, of which the page's policy complains.
            self.page.screenshot(path=f"{folder}/{name}-{theme}.png", full_page=True, caret="initial")

    def _end_of_log(self) -> list[str]:
        return [] if self.log is None else self.log.read_text(errors="replace").splitlines()[-30:]

    def _handle_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console {message.type}: {message.text}")

    def _handle_dialog(self, dialog: Dialog) -> None:
        if any(part in dialog.message for part in self.agreed):
            dialog.accept()
            return
        self.problems.append(f"a dialog: {dialog.message}")
        dialog.dismiss()

    def _handle_request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.problems.append(f"a request to somebody else: {request.url}")

    def _handle_failed_request(self, request: Request) -> None:
        # A page that is left, and a stream that is closed, abort what they have asked for.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"request failed: {request.url}: {request.failure}")

    def _handle_response(self, response: Response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.request.method} {response.url}")


@contextmanager
def watching(page: Page, origin: str, *, log: Path | None = None) -> Iterator[Watched]:
    """Watch the page within the block, and not what it shows afterwards to others."""
    watched = Watched(page=page, origin=origin, log=log)
    listeners = watched.listeners()
    for event, listener in listeners.items():
        page.on(event, listener)
    try:
        yield watched
    finally:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
