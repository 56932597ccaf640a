"""Tests: what a browser loads, and what it is told when there is no storage."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from qml_mp.core.recurring import RecurringJob
from qml_mp.storage.open import open_storage
from qml_mp.storage.postgres.target import parse_target
from qml_mp.views.storage_name import storage_name
from qml_mp.web import dashboard
from tests.fresh_storage import fresh_url_with_password
from tests.web.asgi import Visitor
from tests.web.screens import SCREENS
from tests.web.serving import Served, sentence_of, served, token_of
from tests.web.test_mounting import Links

_MOST_BYTES = 200_000


def test_the_first_load_is_small_and_comes_from_the_page_alone(page: Served) -> None:
    with page.visitor() as visitor:
        home = visitor.get("/")
        links = [link for link in Links(home.text).found if "/static/" in link]
        files = [visitor.get(link) for link in links]

    assert len(files) == 5
    assert all(file.status_code == 200 for file in files)
    assert "//" not in home.text.replace(page.origin, "").partition("</head>")[0]
    assert len(home.content) + sum(len(file.content) for file in files) <= _MOST_BYTES


def test_what_was_loaded_is_kept_by_browsers_until_there_is_another_version(page: Served) -> None:
    with page.visitor() as visitor:
        home = visitor.get("/")
        files = [visitor.get(link) for link in Links(home.text).found if "/static/" in link]

    assert [file.headers["cache-control"] for file in files] == ["public, max-age=31536000, immutable"] * 5
    assert home.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("query", ["?v=of-another-version", ""])
def test_a_file_that_is_asked_for_by_a_page_of_another_version_is_kept_by_nobody(
    page: Served, query: str
) -> None:
    with page.visitor() as visitor:
        script = visitor.get(f"/static/page.js{query}")

    assert script.status_code == 200
    assert script.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("name", ["htmx-2.0.11.min.js", "htmx-ext-sse-2.2.4.min.js"])
def test_what_others_wrote_is_given_with_its_licence(page: Served, name: str) -> None:
    licence = name.partition("-2")[0] + ".LICENSE"
    with page.visitor() as visitor:
        assert visitor.get(f"/static/vendor/{name}").status_code == 200
        assert "Zero" in visitor.get(f"/static/vendor/{licence}").text


@pytest.mark.parametrize("screen", SCREENS)
def test_no_screen_tells_the_folder_in_which_the_storage_is(
    file_url: str, tmp_path: Path, screen: str
) -> None:
    with closing(open_storage(file_url)) as storage:
        digest = RecurringJob.new("digest", "0 9 * * *", "digest")
        storage.follow_code(f"tasks:app in {tmp_path}", [digest], spec="tasks:app")
    with served(file_url, tmp_path) as page, page.visitor() as visitor:
        shown = visitor.get(screen)

    assert shown.status_code == 200
    assert "jobs.db" in shown.text
    assert str(tmp_path) not in shown.text


def test_a_storage_that_is_gone_is_a_sentence(file_url: str, tmp_path: Path) -> None:
    with served(file_url, tmp_path) as page, page.visitor() as visitor:
        assert visitor.get("/").status_code == 200
        (tmp_path / "jobs.db").rename(tmp_path / "away.db")

        whole = visitor.get("/jobs")
        part = visitor.get("/jobs", headers={"HX-Request": "true", "HX-Target": "jobs"})

    assert whole.status_code == part.status_code == 503
    assert "deleted or replaced" in sentence_of(whole)
    assert str(tmp_path) not in whole.text + part.text
    assert "<" not in part.text
    assert "Traceback" not in page.log.read_text()


def test_what_a_database_says_is_told_to_its_end(postgres_url: str) -> None:
    """It may have an @ that could be the end of a password of the storage's URL, which stands before it."""
    with fresh_url_with_password(postgres_url) as url, closing(open_storage(url)) as storage:
        storage.migrate()
        visitor = Visitor(dashboard(storage))
        token = token_of(visitor.get("/queues").text)
        schema = parse_target(url).schema
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"""
                CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql
                AS $$ BEGIN RAISE EXCEPTION 'not now, ask ops@example.com'; END $$
            """)
            connection.execute(f"""
                CREATE TRIGGER refuse BEFORE INSERT ON {schema}.limits
                FOR EACH ROW EXECUTE FUNCTION {schema}.refuse()
            """)

        answer = visitor.post("/queues/pause", data={"name": "images", "page_token": token})

        assert answer.status_code == 503
        told = f"PostgreSQL at {storage_name(storage.display_url)} failed at "
        assert sentence_of(answer).startswith(told)
        assert "not now, ask ops@example.com" in sentence_of(answer)


def test_it_ends_at_once_though_streams_are_open(file_url: str, tmp_path: Path) -> None:
    with served(file_url, tmp_path) as page, page.visitor() as visitor:
        with visitor.stream("GET", "/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: hello"
            page.process.send_signal(15)

            rest = list(lines)

        assert page.process.wait(60) == 0

    assert rest[-3:] == ["event: end", "data: .", ""]
    assert "Traceback" not in page.log.read_text()
