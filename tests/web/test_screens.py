"""Tests: every screen is read from either backend, whatever texts are stored there. What a browser makes of
them is the matter of tests/browser."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from qml_mp.printable import printable
from qml_mp.storage.store import Storage
from tests.browser import hostile
from tests.browser.screens import SCREENS
from tests.web.serving import Served

LISTS = ("/queues", "/recurring", "/servers")
"""That have every text, as the names of what they are about."""


class Text(HTMLParser):
    """What stands on a page, without its marks."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.feed(page)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


@pytest.fixture(scope="module")
def filled(page: Served, storage: Storage) -> Served:
    """The page of a storage that has them everywhere."""
    hostile.fill(storage)
    return page


@pytest.mark.parametrize("path", SCREENS)
def test_a_screen_is_read_whole(filled: Served, path: str) -> None:
    with filled.visitor() as visitor:
        shown = visitor.get(path)

    assert shown.status_code == 200
    assert shown.text.rstrip().endswith("</html>")
    assert "Traceback" not in filled.log.read_text()


@pytest.mark.parametrize("path", LISTS)
def test_a_list_shows_every_text_whole(filled: Served, path: str) -> None:
    with filled.visitor() as visitor:
        shown = words("".join(Text(visitor.get(path).text).parts))

    assert [text for text in hostile.TEXTS if words(printable(text)) not in shown] == []


def words(text: str) -> str:
    """Without regard to white space."""
    return "".join(text.split())
