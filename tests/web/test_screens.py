"""Tests: every screen is read from either backend, whatever texts are stored there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qml_mp.core.history import Ending, SeriesKey, numbers_of_one
from qml_mp.core.job import Job
from qml_mp.core.state import StateName
from qml_mp.printable import printable
from qml_mp.storage.history import DAY, MINUTE, TEN_MINUTES, Period, floor_to
from qml_mp.storage.store import Storage
from qml_mp.storage.values import JobFilter
from tests.statement_trace import TRACE, statements
from tests.until import wait_until
from tests.web import hostile
from tests.web.screens import SCREENS
from tests.web.serving import Served, served
from tests.web.test_mounting import Links

pytestmark = pytest.mark.xdist_group("web-screens")
LISTS = ("/queues", "/recurring", "/servers")
"""That have every text, as the names of what they are about."""


class Text(HTMLParser):
    """What stands on a page, without its marks, and the marks themselves."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.marks: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.marks.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


@pytest.fixture(scope="module")
def filled(page: Served, storage: Storage) -> Served:
    """The page of a storage that has them everywhere."""
    hostile.fill(storage)
    return page


@pytest.fixture(scope="module")
def reading(filled: Served, url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same for reading only."""
    with served(url, tmp_path_factory.mktemp("reading"), "--read-only") as page:
        yield page


@pytest.mark.parametrize("path", SCREENS)
def test_a_screen_is_read_whole_and_no_text_becomes_a_part_of_it(filled: Served, path: str) -> None:
    with filled.visitor() as visitor:
        shown = visitor.get(path)

    assert shown.status_code == 200
    assert shown.text.rstrip().endswith("</html>")
    assert "Traceback" not in filled.log.read_text()
    assert foreign_marks(shown.text) == []


def foreign_marks(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Elements that the page's own templates never have."""
    return [
        (tag, attributes)
        for tag, attributes in Text(page).marks
        if tag in ("iframe", "base", "img")
        or (tag == "script" and not (attributes.get("src") or "").startswith("/static/"))
        or any(name.startswith("on") or name in ("style", "srcdoc") for name in attributes)
    ]


@pytest.mark.parametrize("path", LISTS)
def test_a_list_shows_every_text_whole(filled: Served, path: str) -> None:
    with filled.visitor() as visitor:
        shown = words("".join(Text(visitor.get(path).text).parts))

    assert [text for text in hostile.TEXTS if words(printable(text)) not in shown] == []


def test_the_screen_of_a_job_shows_its_texts_whole(filled: Served, storage: Storage) -> None:
    failed = {
        job.method: job.id for job in storage.list_jobs(JobFilter(states=[StateName.FAILED]), limit=100).jobs
    }
    with filled.visitor() as visitor:
        pages = {text: visitor.get(f"/jobs/{failed[text]}").text for text in hostile.TEXTS}

    for text, page in pages.items():
        shown = words("".join(Text(page).parts))
        assert shown.count(words(printable(text))) >= 4  # method, queue, error and payload
        assert foreign_marks(page) == []


@pytest.mark.parametrize("path", SCREENS)
def test_every_link_leads_to_a_screen_of_the_page(filled: Served, path: str) -> None:
    with filled.visitor() as visitor:
        page = visitor.get(path).text
        named = Links(page).found
        links = {each["href"] or "" for tag, each in Text(page).marks if tag == "a" and "href" in each}
        answers = {link: visitor.get(link).status_code for link in links if not link.startswith("#")}

    assert [link for link in named if not link.startswith("/") or link.startswith("//")] == []
    assert set(SCREENS) <= links
    assert {link: status for link, status in answers.items() if status != 200} == {}


@pytest.mark.parametrize(
    "path", [*SCREENS, "/recurring/template?id=.", "/jobs/change?change=retry&which=all"]
)
def test_who_may_only_read_is_shown_no_action(reading: Served, path: str) -> None:
    with reading.visitor() as visitor:
        shown = visitor.get(path)

    assert shown.status_code == 200
    assert 'method="post"' not in shown.text


def test_a_part_that_is_fetched_again_shows_what_was_committed(filled: Served, storage: Storage) -> None:
    def figures() -> str:
        part = visitor.get("/", headers={"HX-Request": "true", "HX-Target": "figures"}).text
        return words("".join(Text(part).parts))

    with filled.visitor() as visitor:
        figures()
        storage.enqueue(Job.new("noop", queue="load"))
        waiting = f"{storage.job_counts()[StateName.ENQUEUED]}enqueued"

        wait_until(lambda: waiting in figures(), what="the new job")


def test_many_who_look_cost_the_storage_little(url: str, storage: Storage, tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    traces.mkdir()

    def sent() -> int:
        return sum(map(len, statements(traces).values()))

    tracing = served(url, tmp_path, env={TRACE: str(traces)}, program=("-m", "tests.statement_trace"))
    with tracing as page, page.visitor() as visitor:
        before_first = sent()
        visitor.get("/")
        of_one = sent() - before_first

        began = time.monotonic()
        for _ in range(100):
            storage.enqueue(Job.new("noop", queue="load"))
            assert visitor.get("/").status_code == 200
        seconds, of_all = time.monotonic() - began, sent() - before_first

    # Each figure is read at most once a second, however many look.
    assert of_all <= of_one * (seconds + 2)


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
