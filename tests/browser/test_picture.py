"""The picture in the README is made here, and looked at again in every run."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.browser import everyday
from tests.browser.conftest import ONE_BACKEND, Site
from tests.browser.watching import Watched
from tests.processes.harness import ROOT

VARIABLE = "QML_MP_TEST_PICTURE"
"""Where the picture is written; `scripts/picture` names the one that the README shows."""
SHOWN = ROOT / "examples" / "page.png"
MOST_BYTES = 150_000


@ONE_BACKEND
def test_the_overview_makes_a_picture_for_the_readme(page: Watched, site: Site, tmp_path: Path) -> None:
    everyday.fill(site.storage)
    let_time_pass(site.url)
    path = Path(os.environ.get(VARIABLE) or tmp_path / "page.png")
    page.page.set_viewport_size({"width": 1100, "height": 925})
    page.open("/")

    page.page.screenshot(path=path, caret="initial")

    assert path.stat().st_size < MOST_BYTES


def let_time_pass(url: str) -> None:
    """As if the jobs had come over the last minutes, and not all at once."""
    instants = ("created_at", "enqueued_at", "started_at", "finished_at")
    earlier = ", ".join(f"{column} = {column} - (7 + rowid * 5 % 80) * 1000000" for column in instants)
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute(f"UPDATE qml_jobs SET {earlier}")


def test_the_readme_shows_the_picture() -> None:
    readme = (ROOT / "README.md").read_text()

    assert f"({SHOWN.relative_to(ROOT)})" in readme
    assert SHOWN.read_bytes().startswith(b"\x89PNG")
    assert SHOWN.stat().st_size < MOST_BYTES
