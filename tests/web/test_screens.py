"""Tests: every screen is read from either backend, whatever texts are stored there. What a browser makes of
them is the matter of tests/browser."""

from __future__ import annotations

from datetime import timedelta
from html.parser import HTMLParser

import pytest

from qml_mp.core.history import Ending, SeriesKey, numbers_of_one
from qml_mp.printable import printable
from qml_mp.storage.history import DAY, MINUTE, TEN_MINUTES, Period, floor_to
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


def test_what_took_longer_than_all_bounds_is_told_as_over_the_last_one(
    filled: Served, storage: Storage
) -> None:
    five_hours = numbers_of_one(waited_us=7_200_000_000, ran_us=18_000_000_000)
    counted = {SeriesKey(method="slow", queue="slow", ending=Ending.SUCCEEDED): five_hours}
    storage.note_history(
        [
            Period(step=step, begins_at=floor_to(step, storage.now()), writer="blue#1", numbers=counted)
            for step in (MINUTE, TEN_MINUTES)
        ]
    )

    with filled.visitor() as visitor:
        text = Text(visitor.get("/history?span=1h&queue=slow").text)
    shown = [part.strip() for part in text.parts if part.strip()]

    for figure in ("median wait", "median run"):
        place = shown.index(figure)
        assert (shown[place - 1], shown[place + 1]) == ("over 1 h", "p95 over 1 h")
    assert "1 h" not in shown[shown.index("median run") :]


def test_tables_of_the_history_say_since_when_they_count(filled: Served, storage: Storage) -> None:
    """Since a whole day, where the chart beside them begins with an hour."""
    counted = {
        SeriesKey(method="quick", queue="quick", ending=Ending.SUCCEEDED): numbers_of_one(
            waited_us=1, ran_us=1
        )
    }
    days = [floor_to(DAY, storage.now())]
    storage.note_history([Period(step=DAY, begins_at=days[0], writer="green#1", numbers=counted)])

    with filled.visitor() as visitor:
        shown = words("".join(Text(visitor.get("/history?span=7d").text).parts))

    days.append(floor_to(DAY, storage.now()))  # midnight may have come
    since = [
        words(f"Counted since {day - timedelta(days=7):%Y-%m-%d %H:%M:%S} UTC; the chart") for day in days
    ]
    assert max(map(shown.count, since)) == 2  # by queue, and by method


def words(text: str) -> str:
    """Without regard to white space."""
    return "".join(text.split())
